"""train, merge and eval where the disk is full or may not be written: exit 3, what was there before is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llmft_cli.run_dir.run import RunDir

from .conftest import TRAIN_FLAGS, Run, files_in

FULL = ["error: no space left on the disk", "hint: free some space, or keep the run on another disk"]
NARRATION = (
    "loading ",
    "fused layers ",
    "before training: ",
    "training ",
    "step ",
    "merging ",
    "comparing ",
    "answering ",
    "recipe: ",
)
KEEP_ALL = ("--save-total-limit", 10)
BLOCK = 4096


def blocks(folder: Path) -> int:
    """The bytes that a folder takes on a disk in memory."""
    return sum(-(-file.stat().st_size // BLOCK) * BLOCK for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def nearly_full(mounted: Callable[[str], Path]) -> Callable[[Path, int], Path]:
    """Copy a run to a small disk, and fill that up to some free bytes."""

    def fill(run: Path, free: int) -> Path:
        disk = mounted("4m")
        shutil.copytree(run, disk / "run")
        facts = os.statvfs(disk)
        (disk / "filler").write_bytes(b"x" * (facts.f_bavail * facts.f_bsize - free))
        return disk / "run"

    return fill


def check_full(done: subprocess.CompletedProcess[str]) -> None:
    """There was no other complaint; where it broke off may be told."""
    lines = [line.partition(" at ")[0] for line in done.stderr.splitlines() if not line.startswith(NARRATION)]
    assert (done.returncode, done.stdout, lines) == (3, "", FULL)


def test_no_room_for_a_checkpoint(
    nearly_full: Callable[[Path, int], Path], prepared_run: Path, trained_run: Path, run: Run
) -> None:
    checkpoint = blocks(trained_run / "checkpoints/checkpoint-40")
    place = nearly_full(prepared_run, checkpoint * 3 // 2 + 8 * BLOCK)
    check_full(run("train", "run", *TRAIN_FLAGS, *KEEP_ALL, folder=place.parent))
    assert [folder.name for folder in (place / "checkpoints").iterdir()] == ["checkpoint-10"]
    assert not (place / "adapter").exists()
    assert RunDir(place).is_done("prepare")

    refused = run("train", "run", folder=place.parent)
    assert refused.stderr.splitlines()[0] == "error: run: an earlier training run stopped at step 10"
    (place.parent / "filler").unlink()
    assert run("train", "run", "--resume", folder=place.parent).returncode == 0
    check_same_adapter(place, trained_run)


def test_no_room_for_the_adapter(
    nearly_full: Callable[[Path, int], Path], prepared_run: Path, trained_run: Path, run: Run
) -> None:
    """All steps are done then: going on must not add one."""
    checkpoint = blocks(trained_run / "checkpoints/checkpoint-40")
    place = nearly_full(prepared_run, 4 * checkpoint + 12 * BLOCK)
    done = run("train", "run", *TRAIN_FLAGS, *KEEP_ALL, "--json", folder=place.parent)
    error = {"kind": "environment", "message": "no space left on the disk", "hint": FULL[1].removeprefix("hint: ")}
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (3, {"ok": False, "error": error}, "")
    assert len(list((place / "checkpoints").iterdir())) == 4
    assert not (place / "adapter").exists()
    assert not list(place.glob(".*.tmp-*"))

    (place.parent / "filler").unlink()
    done = run("train", "run", "--resume", "--json", folder=place.parent)
    assert done.returncode == 0, done.stdout
    earlier, result = RunDir(trained_run).require("train")["headline"], json.loads(done.stdout)
    assert [result[name] for name in ("steps", "best_step", "eval_loss")] == [40, 40, earlier["eval_loss"]]
    assert result["train_loss"] == pytest.approx(earlier["train_loss"])
    check_same_adapter(place, trained_run)


def check_same_adapter(run: Path, other: Path) -> None:
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (other / weights).read_bytes()


@pytest.mark.parametrize(
    ("command", "stage", "free"),
    [("merge", "merge", 16 * BLOCK), ("eval", "eval/held-out", 5 * BLOCK), ("merge", "merge", 0), ("eval", "eval/held-out", 0)],
)
def test_no_room_for_a_result(
    command: str, stage: str, free: int, nearly_full: Callable[[Path, int], Path], trained_run: Path, run: Run
) -> None:
    place = nearly_full(trained_run, free)
    before, trained = files_in(place), RunDir(place).entry("train")
    check_full(run(command, "run", folder=place.parent))
    assert files_in(place) - before <= {"eval", ".lock"}
    assert RunDir(place).require("train") == trained
    assert not RunDir(place).is_done(stage)
    (place.parent / "filler").unlink()
    assert run(command, "run", folder=place.parent).returncode == 0
    assert RunDir(place).is_done(stage)


def test_a_read_only_run(mounted: Callable[[str], Path], trained_run: Path, run: Run) -> None:
    disk = mounted("4m")
    shutil.copytree(trained_run, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = files_in(disk)
    lines = ["error: permission denied: run", "hint: fix its permissions, or keep the run elsewhere"]
    for arguments in (["train", "run", "--overwrite"], ["merge", "run"], ["eval", "run"]):
        refused = run(*arguments, folder=disk)
        assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (3, "", lines)
    answered = run("chat", "run", "--prompt", "What is 4 and 4?", folder=disk)
    assert (answered.returncode, answered.stdout[:5]) == (0, "It is"), answered.stderr
    saving = run("chat", "run", folder=disk, stdin="What is 4 and 4?\n/save talk\n")
    lines = [
        "error: permission denied: run/chat (Read-only file system)",
        "hint: fix its permissions, or keep the run elsewhere",
    ]
    assert (saving.returncode, saving.stdout[:5], saving.stderr.splitlines()[-2:]) == (3, "It is", lines)
    assert files_in(disk) == before
