"""The judgement of `train`: the loss before it, advice in words and as JSON, and `--require-improvement`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

BATCHES = ("--batch-size", 4, "--gradient-accumulation-steps", 1, "--eval-steps", 2)
# To a trained adapter this does harm, from the first evaluation on.
HARMFUL = (*BATCHES, "--max-steps", 6, "--learning-rate", 0.3, "--lr-scheduler", "constant", "--lora-dropout", 0)
USEFUL = (*BATCHES, "--max-steps", 20, "--learning-rate", 3e-3)


def result(done: CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    return found


def held_out_losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}


def stage(run: Path) -> dict:
    entry: dict = json.loads((run / "run.json").read_text())["stages"]["train"]
    return entry


def test_the_loss_before_training_is_the_bases(prepared_copy: Path, run: Run) -> None:
    found = result(run("train", "run", *USEFUL, "--require-improvement", "--json", folder=prepared_copy.parent))
    losses = held_out_losses(prepared_copy)
    assert sorted(losses) == [*range(0, 21, 2)]
    assert found["base_eval_loss"] == losses[0] > found["eval_loss"] == min(losses.values())
    assert found["starting_adapter_eval_loss"] is None
    assert [item["kind"] for item in found["advice"]] == ["few_held_out_rows"]  # 4 of 40
    assert stage(prepared_copy)["headline"]["advice"] == found["advice"]
    scores = result(run("eval", "run", "--max-new-tokens", 2, "--json", folder=prepared_copy.parent))["arms"]
    assert scores["base"]["loss"] == pytest.approx(found["base_eval_loss"], rel=1e-3)
    assert scores["tuned"]["loss"] == pytest.approx(found["eval_loss"], rel=1e-3)


def test_a_training_that_goes_on_begins_with_the_loss_of_its_adapter(trained_copy: Path, run: Run) -> None:
    before = stage(trained_copy)["headline"]
    flags = ("--max-steps", 4, "--eval-steps", 2, "--json")
    found = result(run("train", "run", "--continue", *flags, folder=trained_copy.parent))
    assert found["base_eval_loss"] is None
    assert found["starting_adapter_eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-3)
    shown = run("train", "run", "--continue", *flags[:-1], folder=trained_copy.parent)
    assert shown.returncode == 0, shown.stderr
    assert "before training: held-out loss " in shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("held-out loss")]
    assert "(starting adapter: " in line


def test_where_nothing_beats_the_start_the_last_adapter_is_kept(trained_copy: Path, run: Run) -> None:
    done = run("train", "run", "--continue", *HARMFUL, folder=trained_copy.parent)
    assert done.returncode == 0, done.stderr
    assert "no evaluation beats the adapter it began with" in " ".join(done.stdout.split())
    headline, losses = stage(trained_copy)["headline"], held_out_losses(trained_copy)
    assert min(losses[step] for step in (2, 4, 6)) >= losses[0] == headline["starting_adapter_eval_loss"]
    assert (headline["best_step"], headline["eval_loss"]) == (None, losses[6])
    last = trained_copy / "checkpoints/checkpoint-6/adapter_model.safetensors"
    assert (trained_copy / "adapter/adapter_model.safetensors").read_bytes() == last.read_bytes()


def test_a_required_improvement_that_is_missing_ends_with_6_and_a_usable_adapter(trained_copy: Path, run: Run) -> None:
    folder = trained_copy.parent
    done = run("train", "run", "--continue", *HARMFUL, "--require-improvement", "--json", folder=folder)
    assert (done.returncode, done.stdout.count("\n")) == (6, 1), done.stderr
    found = json.loads(done.stdout)
    assert (found["ok"], found["error"]["kind"]) == (False, "verification")
    for loss in (found["eval_loss"], found["starting_adapter_eval_loss"]):
        assert f"{loss:.4f}" in found["error"]["message"]
    assert found["advice"][0]["kind"] == "no_improvement"
    assert found["advice"][0]["hint"] in found["error"]["hint"]
    assert stage(trained_copy)["status"] == "done"
    assert run("chat", "run", "--prompt", "What?", "--max-new-tokens", 2, folder=folder).returncode == 0
    flags = ("--overwrite", "--from-adapter", "run/earlier/1/adapter")
    again = run("train", "run", *flags, *HARMFUL, "--require-improvement", folder=folder)
    assert again.returncode == 6, again.stderr
    assert "Trained run" in again.stdout
    assert again.stderr.splitlines()[-2].startswith("error: run/adapter is no better than the adapter it began with: ")


def test_a_single_row_trains(tiny_data: Path, tiny_model_dir: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "row.jsonl").write_text((tiny_data / "rows.jsonl").read_text().splitlines()[0] + "\n")
    flags = ("--model", tiny_model_dir, "--max-seq-length", 64, "--max-steps", 12, "--learning-rate", 3e-3)
    done = run("train", "run", "--data", "row.jsonl", *flags, "--json", folder=tmp_path)
    found = result(done)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert (found["eval_loss"], found["base_eval_loss"]) == (None, None)
    (advice,) = found["advice"]
    assert advice["kind"] == "no_held_out_rows"
    assert advice["hint"] == "compare answers to other questions: llmft eval run --prompts questions.jsonl"
    shutil.rmtree(tmp_path / "run/checkpoints")
    gate = run("train", "run", *flags[4:], "--overwrite", "--require-improvement", folder=tmp_path)
    assert gate.returncode == 6
    assert "whether run/adapter is better than the base is unknown: no rows are held out" in gate.stderr
