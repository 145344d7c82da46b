"""Experiment trackers of `--report-to`: transformers' callbacks, each on a run that is begun here.

A resumed training continues the tracker's run. A tracker that fails is left out with a warning: it must not end a training.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base import wandb_account
from llmft_cli.base.errors import MachineError
from llmft_cli.base.reporter import Reporter
from llmft_cli.run_dir import checkpoints
from llmft_cli.settings.config import Config
from llmft_cli.settings.setting import NONE
from llmft_cli.training.loop.trackers import kinds
from llmft_cli.training.loop.trackers.guard import Guard, Request, Tracker, described

if TYPE_CHECKING:
    from llmft_cli.run_dir.run import RunDir
    from llmft_cli.run_dir.stages import StageRecord
    from llmft_cli.training.loop.trainer import QLoRATrainer


@dataclass(frozen=True)
class Kind:
    """A kind of tracker.

    Attributes:
        needs: modules that must be installed.
        is_off: whether the environment turns it off.
        begin: may raise anything.
    """

    label: str
    begin: Callable[[Request], Tracker]
    needs: Callable[[], tuple[str, ...]]
    is_off: Callable[[], bool] = field(default=lambda: False)


KINDS = {
    "wandb": Kind("W&B", kinds.begin_wandb, lambda: ("wandb",), wandb_account.is_disabled),
    "tensorboard": Kind("TensorBoard", kinds.begin_tensorboard, lambda: ("tensorboard",)),
    "mlflow": Kind("MLflow", kinds.begin_mlflow, kinds.mlflow_needs, kinds.mlflow_is_disabled),
    "trackio": Kind("Trackio", kinds.begin_trackio, lambda: ("trackio",)),
}


def names_of(report_to: str) -> list[str]:
    return [name for name in report_to.split(",") if name != NONE]


def check_installed(report_to: str) -> None:
    """Check, without importing them, that the trackers are installed.

    Raises:
        MachineError: one is not.
    """
    for name in names_of(report_to):
        missing = [module for module in KINDS[name].needs() if find_spec(module) is None]
        if missing and not KINDS[name].is_off():
            raise MachineError(
                f"--report-to {name}: {', '.join(missing)} is not installed", f"pip install {name}, or omit it from --report-to"
            )


@contextmanager
def tracked(
    trainer: QLoRATrainer,
    run: RunDir,
    config: Config,
    record: StageRecord,
    recorded: Mapping[str, Any],
    checkpoint: Path | None,
    reporter: Reporter,
) -> Iterator[None]:
    """Log a training to its trackers, and record their ids in the ledger.

    Args:
        recorded: the ledger entry of the training to resume; empty for a new one.
        checkpoint: from which it is resumed.
    """
    folder, ids = run.path.resolve(), dict(recorded.get("trackers", {}))
    done_steps = checkpoints.step_of(checkpoint) if checkpoint else 0
    begun = []
    for name in names_of(config.report_to):
        request = Request(folder, folder.name, config, ids.get(name), done_steps, trainer.args, reporter)
        guard = begin(KINDS[name], request)
        if guard is not None:
            begun.append(guard)
            ids |= {name: guard.tracker.id} if guard.tracker.id else {}
            trainer.add_callback(guard)
    if ids:
        record.facts["trackers"] = ids
        record.save_facts()
    failed = True
    try:
        yield
        failed = False
    finally:
        for guard in begun:
            guard.end(failed)


def begin(kind: Kind, request: Request) -> Guard | None:
    """Begin a tracker's run; None if it is turned off or cannot be begun."""
    if kind.is_off():
        request.reporter.note(f"{kind.label} is turned off by the environment")
        return None
    try:
        with redirect_stdout(io.StringIO()):
            return Guard(kind.label, kind.begin(request), request.reporter)
    except Exception as error:
        request.reporter.warn(f"{kind.label} could not be started, training continues without it: {described(error)}")
        return None
