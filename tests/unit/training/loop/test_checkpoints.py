"""Which checkpoints count, and who may clear the others."""

from __future__ import annotations

import json
from pathlib import Path

from llmft_cli.training.loop import checkpoints


def write_checkpoint(folder: Path, step: int, complete: bool) -> None:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "optimizer.pt").write_bytes(b"\0")
    if complete:
        (place / checkpoints.STATE_FILE).write_text(json.dumps({"global_step": step}))


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def test_the_last_complete_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    for step, complete in ((9, True), (10, True), (100, False)):
        write_checkpoint(tmp_path, step, complete)
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoints.last_complete(tmp_path / "none") is None


def test_looking_for_a_checkpoint_leaves_the_one_that_another_training_is_writing(tmp_path: Path) -> None:
    """A second `train` on a running run used to delete it, before the lock could refuse that `train`."""
    write_checkpoint(tmp_path, 10, complete=False)
    assert checkpoints.last_complete(tmp_path) is None
    assert names(tmp_path) == {"checkpoint-10"}
    checkpoints.remove_incomplete(tmp_path)
    assert names(tmp_path) == set()


def test_a_state_that_is_no_json_is_not_complete(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10, complete=True)
    (tmp_path / "checkpoint-10" / checkpoints.STATE_FILE).write_text('{"global_step": 1')
    assert checkpoints.last_complete(tmp_path) is None
