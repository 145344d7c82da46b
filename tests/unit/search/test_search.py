"""A search from its beginning to its end, on a tiny model: what goes wrong on the way, and what is left at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import Interrupted, StageError, VerificationError
from llmft_cli.base.reporter import Silent
from llmft_cli.run_dir.run import RunDir
from llmft_cli.search import finish, trial_training
from llmft_cli.search.search import search
from llmft_cli.search.trials import Asked
from llmft_cli.settings.config import resolve
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.train import train

from ..training.weather import adapter_of, prepared_run, same, write_rows

pytestmark = pytest.mark.slow
FLAGS = {"max_steps": 4, "lora_r": 4, "device": "cpu", "rows_per_step": 4, "eval_steps": 2.0, "lora_dropout": 0.1}


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)

    warn = note


@pytest.fixture
def made(tmp_path: Path, tiny_model_dir: Path) -> Callable[[str], RunDir]:
    """Prepares a run of this name."""
    data_file = write_rows(tmp_path / "rows.jsonl")
    return lambda name: prepared_run(tmp_path / name, data_file, tiny_model_dir)


def run_search(run: RunDir, recipes: int = 3, resume: bool = False, reporter: Silent | None = None, **more: Any) -> TrainResult:
    stages = ("prepare", "train") if resume else ("prepare",)
    config = resolve({} if resume else {**FLAGS, **more.pop("flags", {})}, saved=run.saved_settings(*stages))
    return search(run, config, reporter or Silent(), Asked(recipes), resume=resume, **more)


def outcomes(result: TrainResult) -> dict[int, str]:
    assert result.search is not None
    return {recipe["number"]: recipe["outcome"] for recipe in result.search["recipes"]}


def test_a_recipe_that_fails_is_left_out(made: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    original = trial_training.run_training

    def failing(trainer, run, files, *arguments):
        if files.folder.name == "02":
            raise VerificationError("the training loss is nan at step 1")
        return original(trainer, run, files, *arguments)

    monkeypatch.setattr(trial_training, "run_training", failing)
    told = Told()
    run = made("run")
    result = run_search(run, reporter=told)
    assert outcomes(result)[2] == "the training loss is nan at step 1"
    assert list(outcomes(result))[-1] == 2
    assert sorted(outcomes(result).values())[:1] == ["kept"]
    assert "recipe 2 is left out: the training loss is nan at step 1" in told.lines
    line = next(line for line in told.lines if line.startswith("after 1/2 of the steps: "))
    assert "automatic recipe (" in line
    assert "recipe 3 (" in line
    assert "dropped" not in line


def test_the_end_can_be_interrupted_and_resumed(made: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    """By then, the best one's checkpoints are the run's already."""
    whole, broken = made("whole"), made("broken")
    expected = run_search(whole)
    with monkeypatch.context() as patch:
        patch.setattr(finish, "save", interrupt)
        with pytest.raises(Interrupted) as raised:
            run_search(broken)
    assert raised.value.hint == f"go on with: llmft train {broken.path} --resume"
    assert list(broken.checkpoints.iterdir())
    entry = broken.entry("train")
    assert entry is not None
    assert entry["status"] == "interrupted"
    result = run_search(broken, resume=True)
    assert result.search == expected.search
    assert same(adapter_of(whole), adapter_of(broken))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_before_the_first_checkpoint_names_the_search(
    made: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made("run")
    monkeypatch.setattr(trial_training, "run_training", interrupt)
    with pytest.raises(Interrupted) as raised:
        run_search(run)
    assert raised.value.hint == f"go on with: llmft train {run.path} --search 3 --search-metric eval_loss"


def test_a_damaged_checkpoint_costs_its_steps_alone(made: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = made("whole"), made("broken")
    expected = run_search(whole)
    original = trial_training.entrants

    def interrupted_at_second_rung(found, rung):
        return original(found, rung) if rung == 0 else interrupt()

    with monkeypatch.context() as patch:
        patch.setattr(trial_training, "entrants", interrupted_at_second_rung)
        with pytest.raises(Interrupted):
            run_search(broken)
    (broken.search / "01/checkpoints/checkpoint-2/adapter_model.safetensors").write_bytes(b"torn")
    assert run_search(broken, resume=True).search == expected.search
    assert same(adapter_of(whole), adapter_of(broken))


def test_a_finished_training_is_replaced_only_if_told(made: Callable[[str], RunDir]) -> None:
    run = made("run")
    config = resolve({**FLAGS, "max_steps": 2}, saved=run.saved_settings("prepare"))
    train(run, config, Silent())
    with pytest.raises(StageError, match="train is already done"):
        run_search(run, 2)
    result = run_search(run, 2, overwrite=True)
    assert result.steps == 4
    assert run.require("train")["headline"]["search"]["metric"] == "eval_loss"
    assert [trial["number"] for trial in json.loads((run.search / "search.json").read_text())["trials"]] == [1, 2]
    train(run, config, Silent(), overwrite=True)
    assert not run.search.exists()
