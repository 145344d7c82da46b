"""Weights & Biases: online if logged in and reachable, otherwise offline; it never prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import first_line
from llmft_cli.base.reporter import Reporter
from llmft_cli.base.wandb_account import can_log_online

if TYPE_CHECKING:
    from wandb import Run

LOGIN_TIMEOUT_SECONDS = 10  # wandb's own is 90


@contextmanager
def wandb_run(folder: Path, project: str, name: str, settings: Mapping[str, Any], reporter: Reporter) -> Iterator[None]:
    """A W&B run for the training; Trainer's own callback finds it and logs to it.

    Args:
        folder: where wandb stores its files (`folder/wandb`).
    """
    options = {"project": project, "name": name, "dir": str(folder), "config": dict(settings)}
    tracked = begin(options, reporter)
    location = Path(tracked.dir).parent
    try:
        yield
    finally:
        tracked.finish()
        if tracked.offline:
            reporter.note(f"W&B is not logged in or not reachable; the run was saved offline. To sync: wandb sync {location}")


def begin(options: Mapping[str, Any], reporter: Reporter) -> Run:
    """Start a W&B run; offline if its server rejects it or takes too long."""
    os.environ["WANDB_SILENT"] = "true"
    # wandb's error telemetry prints its own failures after our result.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    limits = wandb.Settings(init_timeout=LOGIN_TIMEOUT_SECONDS)
    if can_log_online():
        try:
            return wandb.init(**options, mode="online", settings=limits)
        except wandb.Error as error:
            reporter.warn(f"W&B could not start the run online ({type(error).__name__}: {first_line(error)})")
    return wandb.init(**options, mode="offline", settings=limits)
