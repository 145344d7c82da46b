"""Trainer's checkpoints: finding complete ones, and preparing one for resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llmft_cli.base.files import write_atomically
from llmft_cli.run_dir.run import RunDir
from llmft_cli.training.loop import loss_chart

STATE_FILE = "trainer_state.json"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """Trainer's state, or None if the checkpoint is incomplete: Trainer writes this file last."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def last_complete(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return next((checkpoint for checkpoint in newest_first(folder) if read_state(checkpoint) is not None), None)


def remove_incomplete(folder: Path) -> None:
    """Delete incomplete checkpoints. The caller must hold the run's lock: another training may be writing one."""
    for checkpoint in newest_first(folder):
        if read_state(checkpoint) is None:
            shutil.rmtree(checkpoint)


def make_movable(checkpoint: Path) -> None:
    """Update the path of the best checkpoint in the state, which is wrong after the run was moved."""
    state = read_state(checkpoint) or {}
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = str(checkpoint.parent / Path(best).name)
        write_atomically(checkpoint / STATE_FILE, json.dumps(state, indent=2) + "\n")


def forget_steps_after(run: RunDir, checkpoint: Path | None) -> None:
    """Delete the results of an earlier training: all of them, or those after the checkpoint to resume from."""
    if checkpoint is None:
        for folder in (run.checkpoints, run.path / "profile"):
            shutil.rmtree(folder, ignore_errors=True)
        run.metrics.unlink(missing_ok=True)
    else:
        remove_incomplete(run.checkpoints)
        last = step_of(checkpoint)
        rows = [row for row in loss_chart.read_metrics(run.metrics) if row["step"] <= last]
        write_atomically(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
