"""What a resume belongs to: its own checkpoints, data and settings, and the same adapter as without an interruption."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmft_cli.base.errors import ConfigError, Interrupted, StageError, VerificationError
from llmft_cli.base.reporter import Silent
from llmft_cli.run_dir import checkpoints
from llmft_cli.run_dir.run import RunDir
from llmft_cli.training.loop import loss_chart

from .weather import InterruptAt, adapter_of, prepare_run, prepared_run, same, train_run, write_rows

OFTEN = {"eval_steps": 2.0, "lora_dropout": 0.1}
EACH_STEP = {"eval_steps": 1.0, "lr_scheduler": "constant"}
LOSS_BEFORE_TRAINING = 1e3
EARLY_STOPPING = EACH_STEP | {"max_steps": 30, "early_stopping_patience": 3}


@pytest.fixture
def rising_loss(monkeypatch):
    """Makes the held-out loss rise with every step after the first, on any processor: it is the size of the B matrices."""
    from llmft_cli.training.loop import held_out

    def size_of_adapter(model, *arguments):
        sizes = [weight.detach().float().norm() for name, weight in model.named_parameters() if "lora_B" in name]
        size = float(torch.stack(sizes).norm())
        return replace(held_out_loss(model, *arguments), loss=size or LOSS_BEFORE_TRAINING)

    held_out_loss = held_out.held_out_loss
    monkeypatch.setattr(held_out, "held_out_loss", size_of_adapter)


def interrupted_run(path: Path, data_file: Path, tiny_model_dir: Path, at: int = 2, **flags) -> RunDir:
    run = prepared_run(path, data_file, tiny_model_dir)
    with pytest.raises(Interrupted):
        train_run(run, reporter=InterruptAt(at), **(OFTEN | flags))
    return run


def steps_of(run: RunDir) -> list[int]:
    return [row["step"] for row in loss_chart.read_metrics(run.metrics)]


@pytest.mark.slow
def test_interrupted_training_resumes_to_the_same_adapter(tmp_path, data_file, tiny_model_dir):
    whole = prepared_run(tmp_path / "whole", data_file, tiny_model_dir)
    train_run(whole, eval_steps=2.0, lora_dropout=0.1)
    broken = prepared_run(tmp_path / "broken", data_file, tiny_model_dir)
    with pytest.raises(Interrupted, match=r"stopped after step 3 of 6") as raised:
        train_run(broken, eval_steps=2.0, lora_dropout=0.1, reporter=InterruptAt(2))
    assert raised.value.hint == f"resume with: llmft train {broken.path} --resume"
    assert broken.entry("train")["status"] == "interrupted"
    assert not broken.adapter.exists()
    moved = RunDir(tmp_path / "moved")
    broken.path.rename(moved.path)
    result = train_run(moved, resume=True)
    assert result.steps == 6
    assert same(adapter_of(whole), adapter_of(moved))
    steps = [json.loads(line)["step"] for line in moved.metrics.read_text().splitlines()]
    assert steps == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]


def test_resume_refuses_other_settings(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted):
        train_run(run, eval_steps=2.0, reporter=InterruptAt(2))
    with pytest.raises(ConfigError, match=r"--learning-rate was 0.005 before the interruption and is 0.1 now"):
        train_run(run, resume=True, learning_rate=0.1)
    with pytest.raises(ConfigError, match=r"--packing was True before the interruption and is False now"):
        train_run(run, resume=True, packing=False)


@pytest.mark.slow
def test_starting_over_an_interrupted_training_must_be_asked_for(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted):
        train_run(run, eval_steps=2.0, reporter=InterruptAt(2))
    with pytest.raises(StageError, match="stopped at step 3"):
        train_run(run)
    assert train_run(run, overwrite=True).steps == 6


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted):
        train_run(run, eval_steps=2.0, reporter=InterruptAt(2))
    (run.checkpoints / "checkpoint-3" / "trainer_state.json").write_text('{"torn')
    assert train_run(run, resume=True).steps == 6
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]


def test_nothing_to_resume(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(StageError, match="has no checkpoint to resume from"):
        train_run(run, resume=True)


# -- what a checkpoint belongs to


def test_a_training_is_not_resumed_on_other_data(tmp_path, data_file, tiny_model_dir):
    """`prepare OTHER --overwrite` after an interruption, and then the hint's `--resume`, kept an adapter of the old data."""
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir)
    other = write_rows(tmp_path / "other.jsonl", word="never")
    prepare_run(run, other, tiny_model_dir, overwrite=True)
    with pytest.raises(StageError, match="an earlier training run stopped at step 3") as raised:
        train_run(run)
    assert raised.value.hint == f"start over with: llmft train {run.path} --overwrite"
    with pytest.raises(StageError, match="has not finished") as raised:  # of chat, eval and merge
        run.require("train")
    assert raised.value.hint == f"run first: llmft train {run.path} --overwrite"
    with pytest.raises(StageError, match="data has changed since the interrupted training began") as raised:
        train_run(run, resume=True)
    assert raised.value.hint == f"start over with: llmft train {run.path} --overwrite"
    train_run(run, overwrite=True)
    fresh = prepared_run(tmp_path / "fresh", other, tiny_model_dir)
    train_run(fresh)
    assert same(adapter_of(run), adapter_of(fresh))


def test_checkpoints_of_another_training_are_not_resumed(tmp_path, data_file, tiny_model_dir):
    """Checkpoints that were copied into a run, or left from one that was begun anew, used to be taken for its own."""
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir)
    other = interrupted_run(tmp_path / "other", data_file, tiny_model_dir, learning_rate=0.3)
    shutil.rmtree(run.checkpoints)
    shutil.copytree(other.checkpoints, run.checkpoints)
    with pytest.raises(StageError, match="has no checkpoint to resume from"):
        train_run(run, resume=True)


def test_every_checkpoint_names_its_training(tmp_path, data_file, tiny_model_dir):
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir)
    entry = run.entry("train")
    seals = [checkpoints.read_seal(place) for place in checkpoints.newest_first(run.checkpoints)]
    assert [seal.training for seal in seals] == [entry["training"]] * 2
    assert entry["training"]["inputs"] == entry["inputs"]
    assert entry["training"]["base"] == entry["model"]["fingerprint"]
    assert [seal.best_step for seal in seals] == [2, 2]


def test_folders_of_others_among_the_checkpoints_are_left_alone(tmp_path, data_file, tiny_model_dir):
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir, eval_steps=1.0, save_total_limit=1)
    for name in ("checkpoint-best", "checkpoint-1-backup"):
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "notes.txt").write_text("mine")
    train_run(run, resume=True)
    train_run(run, overwrite=True)
    for name in ("checkpoint-best", "checkpoint-1-backup"):
        assert (run.checkpoints / name / "notes.txt").read_text() == "mine"


# -- damage


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "empty", "cut"])
def test_a_damaged_checkpoint_means_the_one_before_and_the_same_adapter(tmp_path, data_file, tiny_model_dir, name, harm):
    """A missing optimizer used to go on with other losses in silence; an empty one was "a bug"."""
    whole = prepared_run(tmp_path / "whole", data_file, tiny_model_dir)
    train_run(whole, **OFTEN)
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir)
    file = run.checkpoints / "checkpoint-3" / name
    content = file.read_bytes()
    file.unlink()
    if harm != "missing":
        file.write_bytes(b"" if harm == "empty" else content[: len(content) // 2])
    reporter = InterruptAt(-1)
    assert train_run(run, resume=True, reporter=reporter).steps == 6
    (warning,) = reporter.warnings
    assert warning.startswith(str(file))
    assert warning.endswith("looking for an earlier checkpoint than step 3")
    assert same(adapter_of(run), adapter_of(whole))


def test_without_an_intact_checkpoint_nothing_is_resumed(tmp_path, data_file, tiny_model_dir):
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir)
    for place in checkpoints.newest_first(run.checkpoints):
        (place / "optimizer.pt").write_bytes(b"")
    with pytest.raises(StageError, match="has no intact checkpoint of this training") as raised:
        train_run(run, resume=True)
    assert raised.value.hint == f"start over with: llmft train {run.path} --overwrite"


class DamageBest(Silent):
    """Harms the best checkpoint when the last evaluation is told."""

    def __init__(self, run: RunDir, step: int) -> None:
        self.run = run
        self.step = step

    def note(self, message: str) -> None:
        if message.startswith(f"step {self.step}:"):
            for place in checkpoints.newest_first(self.run.checkpoints):
                (place / "adapter_model.safetensors").unlink()


@pytest.mark.usefixtures("rising_loss")
def test_a_best_checkpoint_that_is_gone_is_not_replaced_in_silence(tmp_path, data_file, tiny_model_dir):
    """Trainer only logs that it cannot find the best one: the last step's adapter was kept under the best one's figures."""
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    flags = EACH_STEP | {"save_total_limit": 6}
    with pytest.raises(StageError, match="the adapter to keep cannot be loaded"):
        train_run(run, reporter=DamageBest(run, 6), **flags)
    assert not run.adapter.exists()


@pytest.mark.usefixtures("rising_loss")
def test_the_adapter_that_is_kept_is_that_of_the_reported_step(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    best = train_run(run, **EACH_STEP)
    kept = (run.checkpoints / f"checkpoint-{best.best_step}" / "adapter_model.safetensors").read_bytes()
    assert best.best_step == 1
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == kept
    last = train_run(run, overwrite=True, load_best_model_at_end=False, **EACH_STEP)
    assert last.best_step is None
    assert last.eval_loss == loss_chart.read_metrics(run.metrics)[-1]["eval_loss"] > best.eval_loss
    kept = (run.checkpoints / "checkpoint-6" / "adapter_model.safetensors").read_bytes()
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == kept


@pytest.mark.usefixtures("rising_loss")
def test_another_adapter_than_the_reported_one_is_not_saved(tmp_path, data_file, tiny_model_dir, monkeypatch):
    from llmft_cli.training.loop import trainer

    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    monkeypatch.setattr(trainer.QLoRATrainer, "_load_best_model", lambda self: None)
    with pytest.raises(VerificationError, match="the adapter to save is not that of"):
        train_run(run, **EACH_STEP)
    assert not run.adapter.exists()


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', "\x00\x00", '{"step"', "4"])
def test_a_torn_last_line_of_the_figures_is_ignored(tmp_path, data_file, tiny_model_dir, torn):
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir)
    with run.metrics.open("a") as file:
        file.write(torn)
    train_run(run, resume=True)
    assert steps_of(run) == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]


# -- what Trainer forgets


@pytest.mark.usefixtures("rising_loss")
def test_patience_is_kept_over_an_interruption(tmp_path, data_file, tiny_model_dir):
    """37 steps without an interruption used to become 40 with one."""
    whole = prepared_run(tmp_path / "whole", data_file, tiny_model_dir)
    expected = train_run(whole, **EARLY_STOPPING)
    assert expected.steps == 4
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted):  # with a part of the patience used up
        train_run(run, reporter=InterruptAt(expected.steps - 2), **EARLY_STOPPING)
    result = train_run(run, resume=True, **EARLY_STOPPING)
    assert (result.steps, result.best_step, result.eval_loss) == (expected.steps, expected.best_step, expected.eval_loss)
    assert same(adapter_of(run), adapter_of(whole))


def stopped(*arguments):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("rising_loss")
def test_a_training_that_had_stopped_early_is_not_trained_on(tmp_path, data_file, tiny_model_dir, monkeypatch):
    """Killed between its last checkpoint and the adapter, it went on to train when it was resumed."""
    whole = prepared_run(tmp_path / "whole", data_file, tiny_model_dir)
    expected = train_run(whole, **EARLY_STOPPING)
    assert expected.steps == 4
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with monkeypatch.context() as patch:
        patch.setattr("llmft_cli.training.train.save", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_run(run, **EARLY_STOPPING)
    result = train_run(run, resume=True, **EARLY_STOPPING)
    assert (result.steps, result.best_step, result.eval_loss) == (expected.steps, expected.best_step, expected.eval_loss)
    assert same(adapter_of(run), adapter_of(whole))
    assert steps_of(run) == steps_of(whole)


class InterruptAfterStep(Silent):
    """Asks to stop as soon as a step is logged, before its evaluation."""

    def __init__(self, step: int) -> None:
        self.step = step

    def track(self, label, *, total, done=0):
        from contextlib import contextmanager

        @contextmanager
        def tracked():
            taken = done

            def advance(count, **figures):
                nonlocal taken
                taken += count
                if count and label == "training" and taken == self.step:
                    os.kill(os.getpid(), signal.SIGINT)

            yield advance

        return tracked()


@pytest.mark.usefixtures("rising_loss")
def test_a_stop_at_a_step_whose_evaluation_is_due_gives_the_same_adapter(tmp_path, data_file, tiny_model_dir):
    """The evaluation was skipped for good, so that the best adapter, if it was that one, was missed."""
    flags = EACH_STEP
    whole = prepared_run(tmp_path / "whole", data_file, tiny_model_dir)
    expected = train_run(whole, **flags)
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted, match=f"stopped after step {expected.best_step} of 6"):
        train_run(run, reporter=InterruptAfterStep(expected.best_step), **flags)
    result = train_run(run, resume=True, **flags)
    assert (result.best_step, result.eval_loss) == (expected.best_step, expected.eval_loss)
    assert same(adapter_of(run), adapter_of(whole))
    assert steps_of(run) == steps_of(whole)


@pytest.mark.usefixtures("rising_loss")
def test_an_evaluation_that_uses_up_patience_after_an_interruption_ends_the_training(tmp_path, data_file, tiny_model_dir):
    whole = prepared_run(tmp_path / "whole", data_file, tiny_model_dir)
    expected = train_run(whole, **EARLY_STOPPING)
    assert expected.steps == 4
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted):
        train_run(run, reporter=InterruptAfterStep(expected.steps), **EARLY_STOPPING)
    figures = run.metrics.read_text()
    with run.metrics.open("a") as file:  # what the evaluation leaves if it is killed right afterwards
        file.write(json.dumps({"step": expected.steps, "epoch": 1.0, "eval_loss": 9.0}) + "\n")
    result = train_run(run, resume=True, **EARLY_STOPPING)
    assert (result.steps, result.best_step, result.eval_loss) == (expected.steps, expected.best_step, expected.eval_loss)
    assert same(adapter_of(run), adapter_of(whole))
    assert run.metrics.read_text().startswith(figures)
    assert steps_of(run) == steps_of(whole)


def test_a_failed_start_over_keeps_the_checkpoints(tmp_path, data_file, tiny_model_dir):
    run = interrupted_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(ConfigError):
        train_run(run, overwrite=True, target_modules="no_such_module")
    assert train_run(run, resume=True).steps == 6
