"""Every file that a command reads, damaged in every way: one error with a documented exit code, and nothing of value lost.

The files are those of a finished run, of a model, and of what is given to commands. By default each file has each fault
before one command, in turn; with LLMFT_ALL_FAULTS=1 before every command, which takes an hour.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmft_cli.run_dir.artifacts import NOT_RECREATED, WRITTEN_BY

from .conftest import Run
from .faults import FAULTS, check_outcome, contents, replaced_by, unreadable

ALL = os.environ.get("LLMFT_ALL_FAULTS") == "1"
FEW_STEPS = [
    "--batch-size",
    1,
    "--gradient-accumulation-steps",
    2,
    "--max-steps",
    4,
    "--eval-steps",
    2,
    "--save-total-limit",
    1,
]
PREPARE = ["prepare", "rows.jsonl", "--run", "run", "--model", "model", "--max-seq-length", 64, "--val-size", 4, "--no-packing"]
SHORT = ["--max-new-tokens", 4]
COMMANDS = {
    "prepare": [*PREPARE, "--preview", 2],
    "prepare anew": [*PREPARE, "--overwrite"],
    "train": ["train", "run", *FEW_STEPS, "--overwrite"],
    "merge": ["merge", "run", "--overwrite"],
    "eval": ["eval", "run", "--overwrite", *SHORT],
    "chat": ["chat", "run", "--prompt", "hi", *SHORT],
    "gpu-check": ["gpu-check", "--run", "run", "--vram", "8GiB"],
}
COMMANDS |= {f"{name}, stale": [*COMMANDS[name], "--allow-stale"] for name in ("train", "merge", "eval", "chat")}
# What a command may take away before it succeeds, in a run: the results of an earlier training are forgotten at its start.
FORGOTTEN = {"train": ["checkpoints", "metrics.jsonl", "loss.svg"]}
LEDGER = ["run.json", "config.yaml", ".lock"]


@pytest.fixture(scope="session")
def finished(run: Run, tiny_data: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, prompts, a model, and a run `run` through all commands."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_model_dir, folder / "model")
    shutil.copy(tiny_data / "rows.jsonl", folder)
    commands = [PREPARE, [*COMMANDS["train"], "--learning-rate", 3e-3], ["merge", "run"], ["eval", "run", *SHORT]]
    for command in commands:
        done = run(*command, folder=folder)
        assert done.returncode == 0, done.stderr
    assert run("chat", "run", *SHORT, folder=folder, stdin="hi\n/save talk\n").returncode == 0
    return folder


def test_every_file_of_a_run_is_in_the_table_of_artifacts(finished: Path) -> None:
    names = {Path(name).parts[0] for name in contents(finished / "run")}
    assert names - set(WRITTEN_BY) - set(NOT_RECREATED) == {".lock"}
    assert {"data", "tokenizer", "checkpoints", "adapter", "merged", "eval", "chat", "run.json"} <= names


def check_command(name: str, run: Run, folder: Path, original: Path, damage: Callable[[Path], None], file: str) -> int:
    """Damage a file, run a command, and check how it ends and what it leaves; the exit code."""
    damage(folder / file)
    command, told = COMMANDS[name], f"{file} {damage.__name__}, {name}"
    stage = name.partition(",")[0].partition(" ")[0]
    may_go = [*LEDGER, *FORGOTTEN.get(stage, []), Path(file).name]
    done = run(*command, folder=folder, unprivileged=damage is unreadable)
    if damage is unreadable and (folder / file).exists():
        (folder / file).chmod(0o644)
    check_outcome(done, told)
    if done.returncode:
        before, after = contents(original, may_go), contents(folder, may_go)
        assert {name: content for name, content in before.items() if after.get(name) != content} == {}, told
    return done.returncode


@pytest.mark.parametrize("command", COMMANDS if ALL else ["in turn"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damaged_files_of_a_run(command: str, fault: Callable[[Path], None], finished: Path, run: Run, tmp_path: Path) -> None:
    turn = itertools.cycle([command] if ALL else COMMANDS)
    for _ in range(FAULTS.index(fault)):  # so that a file meets other commands with other faults
        next(turn)
    failures = []
    for file in contents(finished / "run", [".lock"]):
        replaced_by(tmp_path / "copy", finished)
        try:
            check_command(next(turn), run, tmp_path / "copy", finished, fault, f"run/{file}")
        except AssertionError as failure:
            failures.append(str(failure).partition("\nassert")[0])
    assert failures == [], "\n\n".join(failures)
