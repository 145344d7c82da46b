"""`llmft train` where memory runs out: it goes on in smaller passes, or ends with a command that goes on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.run_dir.run import RunDir

from .conftest import Run

# A card that has room for so many tokens at a time, and after so many passes for fewer; passes without gradients take none.
CARD = """
import os
import torch

forward = torch.nn.Embedding.forward
capacity, passes, capacity_then = map(int, os.environ["CARD"].split())
taken = 0

def limited(self, ids):
    global taken
    if torch.is_grad_enabled():
        taken += 1
        if ids.numel() > (capacity if taken <= passes else capacity_then):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return forward(self, ids)

torch.nn.Embedding.forward = limited
"""
FLAGS = ("--batch-size", 4, "--gradient-accumulation-steps", 2, "--max-steps", 8, "--eval-steps", 4, "--learning-rate", 3e-3)
ROOM = 10**6

Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train_on_card(llmft: Run, tmp_path: Path, prepared_copy: Path) -> Train:
    """`llmft train run` on such a card."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CARD)

    def train(*flags: object, card: tuple[int, int, int], run: Path = prepared_copy) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(tmp_path / "site"), "CARD": " ".join(map(str, card)), "HF_HUB_OFFLINE": "1"}
        return llmft("train", run.name, *FLAGS, *flags, folder=run.parent, **environment)

    return train


@pytest.fixture(scope="module")
def undisturbed(run: Run, prepared_run: Path) -> list[dict[str, Any]]:
    """Figures of the same training with all the memory it wants."""
    target = prepared_run.with_name("undisturbed")
    shutil.copytree(prepared_run, target)
    done = run("train", target.name, *FLAGS, folder=target.parent)
    assert done.returncode == 0, done.stderr
    return figures(target)


def figures(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_same_curve(run: Path, expected: list[dict[str, Any]]) -> None:
    """Within what bf16 rounds."""
    found = figures(run)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        key = "loss" if "loss" in other else "eval_loss"
        assert one[key] == pytest.approx(other[key], rel=5e-3)
        assert one.get("tokens") == other.get("tokens")


def test_training_goes_on_in_smaller_passes(train_on_card: Train, prepared_copy: Path, undisturbed: list) -> None:
    done = train_on_card("--json", card=(ROOM, 5, 100))
    assert done.returncode == 0, done.stderr
    warning = next(line for line in done.stderr.splitlines() if "out of memory" in line)
    assert re.match(
        r"warning: step 3: out of memory with 4 x \d\d tokens \(sequences \d+, \d+, \d+, \d+\): CUDA out of", warning
    )
    assert "continuing with at most " in warning
    result = json.loads(done.stdout)
    assert result["out_of_memory_retries"] == done.stderr.count("out of memory with") >= 1
    assert result["largest_pass_tokens"] <= 100
    assert result["rehearsal_peak_bytes"] is None
    check_same_curve(prepared_copy, undisturbed)
    headline = RunDir(prepared_copy).require("train")["headline"]
    assert headline["out_of_memory_retries"] == result["out_of_memory_retries"]


def test_a_row_that_does_not_fit_ends_it_and_the_hint_goes_on(
    train_on_card: Train, prepared_copy: Path, undisturbed: list, run: Run
) -> None:
    done = train_on_card(card=(ROOM, 11, 3))
    assert (done.returncode, done.stdout) == (5, "")
    message, hint = done.stderr.splitlines()[-2:]
    place = r"row \d+ of run/data/train.arrow \(\d\d tokens, its target begins with 'It is \d+\.<\|im_end\|>'\)"
    reason = r"does not fit: CUDA out of memory\. Tried to allocate 2\.00 GiB\."
    assert re.fullmatch(rf"error: out of memory after step 6 of 8: {place} {reason}", message)
    assert hint == "hint: resume with: llmft train run --resume --gradient-checkpointing"
    assert "Traceback" not in done.stderr
    entry = RunDir(prepared_copy).entry("train")
    assert entry is not None
    assert entry["status"] == "failed"
    assert (prepared_copy / "checkpoints/checkpoint-6/trainer_state.json").exists()
    resumed = run(*shlex.split(hint.partition("llmft ")[2]), folder=prepared_copy.parent)
    assert resumed.returncode == 0, resumed.stderr
    check_same_curve(prepared_copy, undisturbed)


def test_where_activations_are_recomputed_already_shorter_rows_are_the_way(
    train_on_card: Train, tiny_data: Path, tiny_model_dir: Path, tmp_path: Path, run: Run
) -> None:
    rows = [json.loads(line) for line in (tiny_data / "rows.jsonl").read_text().splitlines()]
    for row in rows[:8]:
        row["messages"][1]["content"] *= 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--run", "long run", "--model", tiny_model_dir, "--max-seq-length", 128, "--val-size", 4)
    assert run("prepare", "rows.jsonl", *flags, folder=tmp_path).returncode == 0
    target = tmp_path / "long run"
    done = train_on_card("--gradient-checkpointing", "--json", card=(70, 0, 60), run=target)
    assert done.returncode == 5
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "memory"
    assert error["message"].startswith("out of memory before the end of the first step: row ")
    first, _, shorter = error["hint"].partition("; or use shorter rows: ")
    assert first == "when more memory is free, start again with: llmft train 'long run' --config 'long run/config.yaml'"
    for command in shorter.split(" && "):
        again = run(*shlex.split(command)[1:], folder=tmp_path)
        assert again.returncode == 0, again.stderr
    entry = RunDir(target).require("train")
    assert [entry["config"][name] for name in ("max_seq_length", "batch_size", "gradient_checkpointing")] == [64, 4, True]


def test_a_resumed_training_may_be_cut_into_other_passes(
    train_on_card: Train, prepared_copy: Path, undisturbed: list, run: Run
) -> None:
    assert train_on_card(card=(ROOM, 11, 3)).returncode == 5
    refused = run("train", "run", "--resume", "--batch-size", 2, folder=prepared_copy.parent)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0] == "error: --batch-size was 4 before the interruption and is 2 now"
    flags = ("--batch-size", 2, "--gradient-accumulation-steps", 4)
    done = run("train", "run", "--resume", *flags, folder=prepared_copy.parent)
    assert done.returncode == 0, done.stderr
    check_same_curve(prepared_copy, undisturbed)
