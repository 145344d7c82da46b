"""Adapters and base models that changed after training are rejected with a clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmft_cli.base.files import hash_path
from llmft_cli.run_dir.run import RunDir

from .conftest import TRAIN_FLAGS, Run, Started, files_in

WEIGHTS = "adapter/adapter_model.safetensors"
COMMANDS = (["chat", "run", "--prompt", "hi"], ["eval", "run"], ["merge", "run"])


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def change_nothing(file: Path) -> None:
    weights = load_file(file)
    save_file({name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in weights.items()}, file)


def lose_one(file: Path) -> None:
    weights = load_file(file)
    weights.pop(sorted(weights)[3])
    save_file(weights, file)


def break_numbers(file: Path) -> None:
    weights = load_file(file)
    next(tensor for name, tensor in weights.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(weights, file)


DAMAGES = [
    (truncate, 3, "error: the adapter run/adapter cannot be loaded: "),
    (empty, 3, "error: the adapter run/adapter cannot be loaded: "),
    (change_nothing, 6, "error: the adapter has no effect: all its B matrices are zero"),
    (lose_one, 6, "error: the adapter run/adapter has 27 weights, but the model has 28"),
    (break_numbers, 6, "error: the adapter has weights that are not finite"),
]


@pytest.mark.parametrize(("damage", "code", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_adapter(damage: Callable[[Path], None], code: int, message: str, trained_copy: Path, run: Run) -> None:
    damage(trained_copy / WEIGHTS)
    before = files_in(trained_copy)
    for arguments in COMMANDS:
        refused = run(*arguments, folder=trained_copy.parent)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error: run: the stage train is stale: adapter has changed since\nhint: ")
    # As if the training had ended like this.
    ledger = RunDir(trained_copy).ledger()
    ledger["stages"]["train"]["outputs"]["adapter"] = hash_path(trained_copy / "adapter")
    (trained_copy / "run.json").write_text(json.dumps(ledger))
    for arguments in COMMANDS:
        refused = run(*arguments, folder=trained_copy.parent)
        told = [line for line in refused.stderr.splitlines() if not line.startswith("loading ")]
        assert (refused.returncode, refused.stdout, told[0][: len(message)]) == (code, "", message)
        assert len(told) <= 2
    assert files_in(trained_copy) - before <= {"eval"}


def test_another_base_model_under_the_same_path(
    tmp_path: Path, tiny_model_dir: Path, tiny_data: Path, run: Run, start: Callable[..., Started]
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    shutil.copy(tiny_data / "rows.jsonl", tmp_path)
    flags = ("--data", "rows.jsonl", "--model", "base", "--max-seq-length", 64, "--val-size", 4, "--no-packing")
    command = start("train", "run", *flags, *TRAIN_FLAGS, folder=tmp_path)
    command.wait_for("step 10:")
    command.interrupt()
    assert command.finish().returncode == 130
    weights = load_file(tmp_path / "base/model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, tmp_path / "other.safetensors", {"format": "pt"})
    original = (tmp_path / "base/model.safetensors").read_bytes()
    lines = [
        "error: the base model base is not the one this run was trained on (its files differ)",
        "hint: restore the original, or train again with --overwrite",
    ]

    shutil.copy(tmp_path / "other.safetensors", tmp_path / "base/model.safetensors")
    refused = run("train", "run", "--resume", folder=tmp_path)
    assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (3, "", lines)
    (tmp_path / "base/model.safetensors").write_bytes(original)
    assert run("train", "run", "--resume", folder=tmp_path).returncode == 0

    shutil.copy(tmp_path / "other.safetensors", tmp_path / "base/model.safetensors")
    for arguments in COMMANDS:
        refused = run(*arguments, folder=tmp_path)
        assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (3, "", lines)
    shutil.rmtree(tmp_path / "base")
    refused = run("merge", "run", folder=tmp_path)
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (
        3,
        "error: the model base is not on this machine and the Hub cannot be reached",
    )


def test_a_training_that_breaks_down(prepared_copy: Path, run: Run) -> None:
    """A non-finite loss ends the training immediately; it is not logged as 0, and no adapter is written."""
    flags = ("--learning-rate", 0.99, "--max-grad-norm", 0, "--lora-alpha", 1e30, "--max-steps", 20, "--batch-size", 1)
    done = run("train", "run", *flags, folder=prepared_copy.parent)
    assert (done.returncode, done.stdout) == (6, "")
    lines = ["error: the training loss is nan at step 2", "hint: start over with a lower --learning-rate and --overwrite"]
    assert done.stderr.splitlines()[-2:] == lines
    assert not (prepared_copy / "adapter").exists()
    for line in (prepared_copy / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
