"""The evaluation before the first step changes nothing, is measured once, and is never the one that is kept."""

import json
from dataclasses import replace

import pytest

from llmft_cli.base.errors import Interrupted, VerificationError
from llmft_cli.training.judgement.starting_loss import StartingLoss
from llmft_cli.training.loop import held_out
from llmft_cli.training.loop.loss_chart import read_metrics
from llmft_cli.training.starting_adapter import own_adapter

from ..weather import InterruptAt, adapter_of, prepared_run, same, train_run

EACH_STEP = {"eval_steps": 1.0, "lr_scheduler": "constant"}


def without_start(run):
    return [row for row in read_metrics(run.metrics) if row["step"] > 0]


def figures(run):
    names = ("step", "loss", "grad_norm", "eval_loss", "tokens")
    return [{name: row.get(name) for name in names} for row in without_start(run)]


@pytest.fixture
def losses_of_evaluations(monkeypatch):
    """Replaces the held-out losses by these, one after the other; the last for all that follow."""

    def replace_by(*losses):
        given = list(losses)

        def next_loss(*arguments):
            found = held_out_loss(*arguments)
            return replace(found, loss=given.pop(0) if len(given) > 1 else given[0])

        held_out_loss = held_out.held_out_loss
        monkeypatch.setattr(held_out, "held_out_loss", next_loss)

    return replace_by


def test_losses_and_adapter_are_as_without_it(tmp_path, data_file, tiny_model_dir, monkeypatch):
    measured, plain = (prepared_run(tmp_path / name, data_file, tiny_model_dir) for name in ("measured", "plain"))
    flags = {"eval_steps": 3.0, "lora_dropout": 0.1}
    result = train_run(measured, **flags)
    first = read_metrics(measured.metrics)[0]
    assert (first["step"], first["epoch"]) == (0, 0.0)
    assert result.base_eval_loss == first["eval_loss"]
    assert result.starting_adapter_eval_loss is None
    monkeypatch.setattr(StartingLoss, "on_train_begin", lambda *arguments, **others: None)
    assert train_run(plain, **flags).base_eval_loss is None
    assert figures(measured) == figures(plain)
    assert same(adapter_of(measured), adapter_of(plain))


def test_a_resumed_training_has_it_in_its_log(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted):
        train_run(run, eval_steps=2.0, reporter=InterruptAt(2))
    before = read_metrics(run.metrics)[0]
    result = train_run(run, resume=True)
    assert [row for row in read_metrics(run.metrics) if row["step"] == 0] == [before]
    assert result.base_eval_loss == before["eval_loss"]


def test_a_resumed_continuation_still_calls_it_the_starting_adapters(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    train_run(run, eval_steps=6.0)
    with pytest.raises(Interrupted):
        train_run(run, start=own_adapter(run), eval_steps=2.0, reporter=InterruptAt(2))
    result = train_run(run, resume=True)
    assert result.base_eval_loss is None
    assert result.starting_adapter_eval_loss == read_metrics(run.metrics)[0]["eval_loss"]


def test_without_held_out_rows_there_is_none(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir, val_size=0.0)
    result = train_run(run, max_steps=2)
    assert (result.eval_loss, result.base_eval_loss, result.best_step) == (None, None, None)
    assert [item.kind for item in result.advice] == ["no_held_out_rows"]
    assert read_metrics(run.metrics)[0]["step"] == 1


def test_it_is_no_evaluation_for_patience_and_no_step_to_keep(tmp_path, data_file, tiny_model_dir, losses_of_evaluations):
    """The base is better than all, which patience must not count; the last adapter is kept, not the best of bad ones."""
    losses_of_evaluations(1.0, 3.0, 4.0, 5.0)
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    result = train_run(run, max_steps=30, early_stopping_patience=2, **EACH_STEP)
    assert (result.steps, result.best_step, result.eval_loss, result.base_eval_loss) == (3, None, 5.0, 1.0)
    last = run.checkpoints / "checkpoint-3" / "adapter_model.safetensors"
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == last.read_bytes()
    assert "no_improvement" in [item.kind for item in result.advice]
    headline = json.loads(run.ledger_file.read_text())["stages"]["train"]["headline"]
    assert headline["advice"][0] == {name: getattr(result.advice[0], name) for name in ("kind", "message", "hint")}


def test_a_base_whose_loss_is_not_a_number_is_told_before_it_is_trained(
    tmp_path, data_file, tiny_model_dir, losses_of_evaluations
):
    """The rate was blamed for it, after the first evaluation."""
    losses_of_evaluations(float("nan"))
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(VerificationError, match="the held-out loss is nan before the first step") as raised:
        train_run(run)
    assert "--learning-rate" not in raised.value.hint
    assert read_metrics(run.metrics) == []


def test_the_best_is_kept_as_soon_as_one_beats_the_base(tmp_path, data_file, tiny_model_dir, losses_of_evaluations):
    losses_of_evaluations(3.0, 4.0, 2.0, 2.5)
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    result = train_run(run, max_steps=3, **EACH_STEP)
    assert (result.best_step, result.eval_loss, result.base_eval_loss) == (2, 2.0, 3.0)
    assert read_metrics(run.metrics)[-1]["eval_loss"] == 2.5
