"""What a training leaves in its run: complete checkpoints, the figures of its steps, and the adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.base.errors import VerificationError
from llmft_cli.base.files import hash_file, replacing_directory
from llmft_cli.models.adapters import WEIGHTS_FILE, check_changes_something, save_adapter
from llmft_cli.run_dir import checkpoints
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import StageRecord
from llmft_cli.run_dir.training_files import TrainingFiles
from llmft_cli.training.loop import loss_chart
from llmft_cli.training.starting_adapter import StartingAdapter, recorded_input

if TYPE_CHECKING:
    from llmft_cli.training.loop.trainer import QLoRATrainer


def save(run: RunDir, trainer: QLoRATrainer) -> None:
    """Leave the adapter and the loss chart in the run.

    Raises:
        VerificationError: the adapter changes nothing, or is not that of the checkpoint whose figures are reported.
    """
    check_changes_something(trainer.model)
    kept = checkpoints.read_seal(trainer.kept_checkpoint())
    loss_chart.draw(run.metrics, run.loss_chart)  # first: if this fails, an earlier adapter is kept
    with replacing_directory(run.adapter) as folder:
        save_adapter(trainer.model, folder)
        if kept is not None and hash_file(folder / WEIGHTS_FILE) != kept.files[WEIGHTS_FILE]:
            raise VerificationError(
                f"the adapter to save is not that of {trainer.kept_checkpoint()}",
                f"train again from its checkpoint: llmft train {run.path} --resume",
            )


def begin(record: StageRecord, start: StartingAdapter | None, resumed: bool) -> None:
    """Record that this training is what can be resumed from now on, and delete the results of an earlier one."""
    run = record.run
    if start is not None:
        record.entry["inputs"] |= recorded_input(start, record)
    record.begin()
    if resumed:
        return
    forget_steps_after(None, run.training_files)
    for folder in (run.path / "profile", run.search):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def complete_checkpoints(files: TrainingFiles, checkpoint: Path | None) -> Iterator[None]:
    """Begin after the given checkpoint, and leave complete ones only, however the training ends."""
    forget_steps_after(checkpoint, files)
    try:
        yield
    finally:
        for written in checkpoints.newest_first(files.checkpoints):
            if not (written / checkpoints.SEAL_FILE).exists():
                checkpoints.remove(written)


def forget_steps_after(checkpoint: Path | None, files: TrainingFiles) -> None:
    """Delete what was written after the checkpoint to go on from: everything if there is none."""
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    for later in checkpoints.newest_first(files.checkpoints):
        if checkpoint is None or checkpoints.step_of(later) > step:
            checkpoints.remove(later)
    if checkpoint is None:
        files.metrics.unlink(missing_ok=True)
    else:
        log = json.loads((checkpoint / checkpoints.STATE_FILE).read_text(encoding="utf-8"))["log_history"]
        # An evaluation that the checkpoint does not know is made again.
        loss_chart.forget_steps_after(files.metrics, step, {row["step"] for row in log if "eval_loss" in row})
