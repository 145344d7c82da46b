"""`train` without a training flag: what it chooses is told, recorded, and used again on resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from llmft_cli.run_dir.run import RunDir

from .conftest import Run

CHOSEN = ["rows_per_step", "num_epochs", "learning_rate", "warmup_ratio", "eval_steps", "early_stopping_patience"]


def test_without_a_flag_the_recipe_is_told_recorded_and_the_same_each_time(
    prepared_run: Path, run: Run, tmp_path: Path
) -> None:
    folders = [shutil.copytree(prepared_run, tmp_path / name) for name in ("once", "twice")]
    trained = [run("train", folder.name, "--json", folder=tmp_path) for folder in folders]
    assert [done.returncode for done in trained] == [0, 0], trained[0].stderr
    # On processors with bf16 instructions, bitsandbytes said that it lacks a kernel, if others imported it first.
    assert "kernels" not in trained[0].stderr
    results = [json.loads(done.stdout) for done in trained]
    entry = RunDir(folders[0]).require("train")
    recipe, used = entry["recipe"], entry["config"]
    assert list(recipe) == CHOSEN
    assert {name: used[name] for name in CHOSEN} == {name: choice["value"] for name, choice in recipe.items()}
    saved = yaml.safe_load((folders[0] / "config.yaml").read_text())
    assert {name: saved[name] for name in CHOSEN} == {name: used[name] for name in CHOSEN}
    assert results[0]["plan"]["rows_per_step"] == used["rows_per_step"] == 8
    # It learns, and is the same bit for bit when it is done again.
    assert results[0]["eval_loss"] < results[0]["base_eval_loss"]
    adapters = [(folder / "adapter/adapter_model.safetensors").read_bytes() for folder in folders]
    assert adapters[0] == adapters[1]


def test_what_is_given_stays_and_is_told_no_more(prepared_copy: Path, run: Run) -> None:
    flags = ("--learning-rate", 1e-3, "--num-epochs", 1, "--rows-per-step", 3)
    done = run("train", "run", *flags, folder=prepared_copy.parent)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("recipe: ")]
    assert told == [
        "recipe: --warmup-ratio 0.05 (of the steps)",
        "recipe: --eval-steps 0.5 (2 evaluations; the best adapter is kept)",
        "recipe: --early-stopping-patience 0 (few passes, so all are made)",
    ]
    used = RunDir(prepared_copy).require("train")["config"]
    assert (used["learning_rate"], used["num_epochs"], used["rows_per_step"]) == (1e-3, 1, 3)


def test_one_row_trains(tmp_path: Path, tiny_model_dir: Path, run: Run) -> None:
    row = {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is a cloud."}]}
    (tmp_path / "row.jsonl").write_text(json.dumps(row) + "\n")
    done = run("train", "run", "--data", "row.jsonl", "--model", tiny_model_dir, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert losses[-1] < losses[0]
    assert json.loads(done.stdout)["plan"]["rows_per_step"] == 1
