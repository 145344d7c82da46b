"""Commands whose output nobody reads to the end: the stage is done, the ledger says so, and so does the exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmft_cli.run_dir.run import RunDir

from .conftest import TRAIN_FLAGS


def exit_code_of(line: str, folder: Path, lines_read: int) -> int:
    """The exit code of a command whose stdout and stderr are a pipe that is closed after some lines."""
    program = [sys.executable, "-m", "llmft_cli", *line.split()]
    with subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for _ in range(lines_read):
            process.stdout.readline()
        process.stdout.close()
        return process.wait(timeout=300)


def test_a_training_goes_on_after_head(prepared_copy: Path) -> None:
    """`llmft train RUN 2>&1 | head -5` ended the training; the ledger said failed, and the exit code was 0."""
    line = f"train run {' '.join(map(str, TRAIN_FLAGS))}"
    assert exit_code_of(line, prepared_copy.parent, 5) == 0
    assert RunDir(prepared_copy).require("train")["headline"]["steps"] == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "stage", "code"),
    [
        ("merge run", "merge", 0),
        ("eval run --max-new-tokens 4 --json", "eval/held-out", 0),
        ("chat run --prompt hi --json", None, 0),
        ("chat run --prompt hi", None, 141),
        ("train run --json", None, 2),
    ],
)
def test_other_commands_without_a_reader(line: str, stage: str | None, code: int, trained_copy: Path) -> None:
    assert exit_code_of(line, trained_copy.parent, 0) == code
    assert stage is None or RunDir(trained_copy).is_done(stage)
