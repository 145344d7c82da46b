"""Weights & Biases: online when logged in and reachable, otherwise offline, and never a prompt."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from llmft_cli.network import is_reachable
from llmft_cli.progress import Reporter

DEFAULT_SERVER = "https://api.wandb.ai"


@contextmanager
def wandb_run(folder: Path, project: str, name: str, settings: Mapping[str, Any], reporter: Reporter) -> Iterator[None]:
    """A W&B run around the training; Trainer's own callback finds it and logs into it.

    Args:
        folder: where wandb keeps its files (`folder/wandb`).
    """
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    mode: Literal["online", "offline"] = "online" if can_log_online() else "offline"
    tracked = wandb.init(project=project, name=name, dir=folder, mode=mode, config=dict(settings))
    location = Path(tracked.dir).parent
    try:
        yield
    finally:
        wandb.finish()
        if mode == "offline":
            reporter.note(f"W&B is not logged in or not reachable; the run was kept offline. To sync: wandb sync {location}")


def can_log_online() -> bool:
    """Whether an account is set up here, as `wandb login` or WANDB_API_KEY leaves it, and its server answers."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    server = os.environ.get("WANDB_BASE_URL", DEFAULT_SERVER)
    return (bool(os.environ.get("WANDB_API_KEY")) or in_netrc(urlparse(server).hostname or server)) and is_reachable(server)


def in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
