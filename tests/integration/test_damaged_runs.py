"""Adapters and base models that changed after training are rejected with a clear error."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
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
    (truncate, 2, "error: the adapter run/adapter cannot be loaded: run/adapter/adapter_model.safetensors is cut off: "),
    (empty, 2, "error: the adapter run/adapter cannot be loaded: run/adapter/adapter_model.safetensors is empty"),
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


def test_what_a_command_needs_of_a_run_is_named_when_it_is_gone(trained_copy: Path, run: Run) -> None:
    """With --allow-stale, too, where nothing is compared with the ledger."""
    for name, commands in {"data": COMMANDS[1:], "tokenizer": COMMANDS, "adapter": COMMANDS}.items():
        aside = (trained_copy / name).rename(trained_copy.with_name("aside"))
        for arguments, stale in itertools.product(commands, ([], ["--allow-stale"])):
            refused = run(*arguments, *stale, folder=trained_copy.parent)
            errors = [line for line in refused.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
            again = "llmft train run" if name == "adapter" else "llmft prepare DATA --run run"
            assert (refused.returncode, len(errors), f"run/{name}" in errors[0]) == (2, 2, True), refused.stderr
            assert errors[1] == f"hint: recreate it: {again} --overwrite"
        aside.rename(trained_copy / name)
    shutil.rmtree(trained_copy / "data")  # to save space, say: a conversation needs none of it
    assert run("chat", "run", "--prompt", "hi", "--allow-stale", folder=trained_copy.parent).returncode == 0


def test_a_run_of_an_earlier_version(trained_copy: Path, run: Run) -> None:
    """Its data is not damaged. It held packed sequences, with the lengths of their rows."""
    integers = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([(name, integers) for name in ("input_ids", "labels", "row_lengths")])
    for split in ("train", "validation"):
        file = str(trained_copy / f"data/{split}.arrow")
        with pyarrow.OSFile(file, "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pyarrow.record_batch([[[5, 6, 7]], [[-100, 6, 7]], [[3]]], schema=schema))
    ledger = RunDir(trained_copy).ledger()
    data = hash_path(trained_copy / "data")
    ledger["stages"]["prepare"]["outputs"]["data"] = ledger["stages"]["train"]["inputs"]["data"] = data
    ledger["stages"]["prepare"]["config"]["packing"] = True
    (trained_copy / "run.json").write_text(json.dumps(ledger))
    before = (files_in(trained_copy), (trained_copy / "run.json").read_bytes())
    reading = [["train", "run", "--overwrite", "--no-packing"], *COMMANDS[1:], ["gpu-check", "--run", "run", "--vram", "8GiB"]]
    for arguments in reading:
        refused = run(*arguments, folder=trained_copy.parent)
        told = [line for line in refused.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
        assert refused.returncode == 2
        assert told == [
            "error: run was prepared by an earlier version of llmft, which packed its rows",
            "hint: prepare it again: llmft prepare DATA --run run --overwrite",
        ]
    assert (files_in(trained_copy), (trained_copy / "run.json").read_bytes()) == before
    assert run(*COMMANDS[0], folder=trained_copy.parent).returncode == 0


def test_a_damaged_run_beside_others(trained_copy: Path, run: Run) -> None:
    """It broke every command without RUN."""
    folder = trained_copy.parent
    (folder / "runs/broken").mkdir(parents=True)
    trained_copy.rename(folder / "runs/run")
    (folder / "runs/broken/run.json").write_text('{"half": ')
    answered = run("chat", "--prompt", "What is 4 and 4?", folder=folder)
    assert (answered.returncode, answered.stdout[:5]) == (0, "It is"), answered.stderr
    warning, note = answered.stderr.splitlines()[:2]
    assert warning.startswith("warning: left out: runs/broken/run.json cannot be read: ")
    assert note == "using the newest run, runs/run"


def test_a_model_that_is_swapped_after_prepare(tmp_path: Path, tiny_model_dir: Path, tiny_data: Path, run: Run) -> None:
    """Training on another vocabulary than that of the data ended in an IndexError."""
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    shutil.copy(tiny_data / "rows.jsonl", tmp_path)
    flags = ("--run", "run", "--model", "base", "--max-seq-length", 64, "--val-size", 4)
    assert run("prepare", "rows.jsonl", *flags, folder=tmp_path).returncode == 0
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**config, "vocab_size": 64}))
    weights = load_file(tmp_path / "base/model.safetensors")
    smaller = {name: tensor[:64].clone() if len(tensor) == config["vocab_size"] else tensor for name, tensor in weights.items()}
    save_file(smaller, tmp_path / "base/model.safetensors", {"format": "pt"})
    refused = run("train", "run", *TRAIN_FLAGS, folder=tmp_path)
    lines = [
        "loading torch and transformers",
        "error: run was prepared for another model base: config.json changed since",
        "hint: restore the model's files, or prepare again: llmft prepare DATA --run run --overwrite",
    ]
    assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (2, "", lines)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
from .names import MODEL_TYPE

class OwnConfig(LlamaConfig):
    model_type = MODEL_TYPE

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_code_of_its_own_is_trained_and_merged(
    tmp_path: Path, tiny_model_dir: Path, tiny_data: Path, run: Run
) -> None:
    """merge reloaded what it had written without --trust-remote-code, and failed."""
    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    shutil.copy(tiny_data / "rows.jsonl", tmp_path)
    (base / "own.py").write_text(CODE)
    (base / "names.py").write_text('MODEL_TYPE = "own"\n')
    config = json.loads((base / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": classes}
    (base / "config.json").write_text(json.dumps(config))
    flags = ("--data", "rows.jsonl", "--model", "base", "--trust-remote-code", "--max-seq-length", 64, "--val-size", 4)
    trained = run("train", "run", *flags, *TRAIN_FLAGS, "--max-steps", 10, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    merged = run("merge", "run", folder=tmp_path)
    assert merged.returncode == 0, merged.stderr
    assert {"own.py", "names.py", "config.json", "model.safetensors"} <= files_in(tmp_path / "run/merged")
    assert json.loads((tmp_path / "run/merged/config.json").read_text())["auto_map"] == classes


def test_another_base_model_under_the_same_path(
    tmp_path: Path, tiny_model_dir: Path, tiny_data: Path, run: Run, start: Callable[..., Started]
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    shutil.copy(tiny_data / "rows.jsonl", tmp_path)
    flags = ("--data", "rows.jsonl", "--model", "base", "--max-seq-length", 64, "--val-size", 4)
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
    assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (
        3,
        "",
        ["loading torch and transformers", *lines],
    )
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
    flags = ("--learning-rate", 0.99, "--max-grad-norm", 0, "--lora-alpha", 2e9, "--max-steps", 20, "--batch-size", 1)
    done = run("train", "run", *flags, folder=prepared_copy.parent)
    assert (done.returncode, done.stdout) == (6, ""), done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert hint == "hint: start over with a lower --learning-rate and --overwrite"
    assert not (prepared_copy / "adapter").exists()
    lines = (prepared_copy / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in lines]
    assert error == f"error: the training loss is nan at step {max(line['step'] for line in logged) + 1}"
