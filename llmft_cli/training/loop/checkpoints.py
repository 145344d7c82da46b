"""Checkpoints as Trainer writes them: which one is complete, and making it fit to resume from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llmft_cli.base.files import write_atomically
from llmft_cli.run_dir import RunDir
from llmft_cli.training.loop import loss_chart

STATE_FILE = "trainer_state.json"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """Trainer's state, or None where the checkpoint is not complete: Trainer writes this file last."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state


def newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def last_complete(folder: Path) -> Path | None:
    """The checkpoint of the highest step that is complete, or None."""
    return next((checkpoint for checkpoint in newest_first(folder) if read_state(checkpoint) is not None), None)


def remove_incomplete(folder: Path) -> None:
    """Clear torn checkpoints; only for who holds the run's lock, another training may be writing one right now."""
    for checkpoint in newest_first(folder):
        if read_state(checkpoint) is None:
            shutil.rmtree(checkpoint)


def make_movable(checkpoint: Path) -> None:
    """Point the state at the best checkpoint beside it; Trainer records a path, which a moved run no longer has."""
    state = read_state(checkpoint) or {}
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = str(checkpoint.parent / Path(best).name)
        write_atomically(checkpoint / STATE_FILE, json.dumps(state, indent=2) + "\n")


def forget_steps_after(run: RunDir, checkpoint: Path | None) -> None:
    """Clear what an earlier training left: all of it, or what came after the checkpoint that is resumed from."""
    if checkpoint is None:
        for folder in (run.checkpoints, run.path / "profile"):
            shutil.rmtree(folder, ignore_errors=True)
        run.metrics.unlink(missing_ok=True)
    else:
        remove_incomplete(run.checkpoints)
        last = step_of(checkpoint)
        rows = [row for row in loss_chart.read_metrics(run.metrics) if row["step"] <= last]
        write_atomically(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
