"""Damage of what a run holds is told with the command that recreates it; another tool's directory is not made a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft_cli.base.errors import DataError, MachineError, ModelError, StageError
from llmft_cli.base.file_checks import DamagedFile
from llmft_cli.run_dir.artifacts import WRITTEN_BY, reading, refuse_foreign
from llmft_cli.run_dir.run import RunDir


def complaint_of(run: RunDir, name: str, error: Exception) -> tuple[str, str]:
    with pytest.raises(StageError) as caught, reading(run, run.path / name):
        raise error
    return caught.value.message, caught.value.hint


def test_damage_is_told_with_the_command_that_recreates_the_file() -> None:
    run = RunDir(Path("runs/my x"))
    file = run.data / "train.arrow"
    again = "recreate it: llmft prepare DATA --run 'runs/my x' --overwrite"
    assert complaint_of(run, "data/train.arrow", DamagedFile(file, "is empty")) == (f"{file} is empty", again)
    assert complaint_of(run, "tokenizer", ModelError("no tokenizer")) == ("no tokenizer", again)
    assert complaint_of(run, "data/held_out.jsonl", DataError("line 3")) == ("line 3", again)
    assert complaint_of(run, "adapter", KeyError("r")) == (
        "runs/my x/adapter cannot be read: KeyError: 'r'",
        "recreate it: llmft train 'runs/my x' --overwrite",
    )
    assert complaint_of(run, "merged", ValueError("odd"))[1] == "recreate it: llmft merge 'runs/my x' --overwrite"


def test_errors_of_the_machine_are_not_damage() -> None:
    run = RunDir(Path("run"))
    with pytest.raises(PermissionError), reading(run, run.adapter):
        raise PermissionError(13, "Permission denied", "run/adapter")
    with pytest.raises(MachineError), reading(run, run.adapter):
        raise MachineError("no GPU")


@pytest.mark.parametrize("name", sorted(WRITTEN_BY))
def test_a_directory_of_something_else_does_not_become_a_run(name: str, tmp_path: Path) -> None:
    """Preparing replaced its `data`, with the source files in it."""
    run = RunDir(tmp_path / "project")
    refuse_foreign(run)
    run.path.mkdir()
    (run.path / "notes.txt").write_text("mine")
    refuse_foreign(run)
    (run.path / name).mkdir()
    with pytest.raises(StageError) as caught:
        refuse_foreign(run)
    assert caught.value.message == f"{run.path} is not a run, and preparing would replace its {name}"
    assert caught.value.hint == f"name another directory: llmft prepare DATA --run {run.path / 'run'}"
    run.ledger_file.write_text("{}")
    refuse_foreign(run)
