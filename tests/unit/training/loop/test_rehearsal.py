"""The longest batch is tried first, without affecting training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import torch

from llmft_cli.base.errors import OutOfMemory
from llmft_cli.training.batches.largest import longest_batch
from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.loop.callbacks import Rehearsal
from llmft_cli.training.loop.rehearsal import rehearse
from llmft_cli.training.loop.smaller_passes import DoesNotFit
from llmft_cli.training.loop.trainer import QLoRATrainer

from ..made_sequences import rows_of
from ..tiny_training import OUT_OF_MEMORY, Told, adapter, gradient_norms, losses, make_trainer


def test_the_longest_batch_has_the_longest_sequence_and_the_most_supervised_tokens_beside_it() -> None:
    sizes = [(9, 1), (12, 7), (20, 2), (10, 8), (8, 7), (15, 3)]
    data = Sequences.one_each(rows_of(*sizes))
    batch = longest_batch(data, 3)
    assert batch["input_ids"].shape == (3, 20)
    assert batch["input_ids"][:, 0].tolist() == [2, 3, 1]
    assert len(batch["predicting"]) == 2 + 8 + 7
    assert longest_batch(data, 10)["input_ids"].shape == (6, 20)
    many = Sequences.one_each(datasets.concatenate_datasets([rows_of(*sizes)] * 400).select(range(5, 2400)))
    assert longest_batch(many, 2)["input_ids"][:, 0].tolist() == [2, 3]


def test_the_longest_batch_of_so_many_tokens_may_have_shorter_sequences() -> None:
    """The sequences of 64 tokens that fit have more tokens than one of 150; the most supervised are taken, none longer."""
    sizes = [(30, 9), (150, 99), (58, 3), (60, 20), (64, 2), (59, 30), (57, 7)]
    data = Sequences.one_each(rows_of(*sizes))
    batch = longest_batch(data, 1, tokens_per_batch=200)
    assert batch["input_ids"].shape == (3, 64)
    assert batch["input_ids"][:, 0].tolist() == [4, 5, 3]
    assert longest_batch(data, 1, tokens_per_batch=150)["input_ids"].shape == (1, 150)


def state_of(trainer: QLoRATrainer) -> list[Any]:
    optimizer = trainer.optimizer.state_dict()
    numbers = [random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    weights = {name: values.tolist() for name, values in adapter(trainer).items()}
    return [weights, repr(optimizer), numbers, [values.grad for values in trainer.model.parameters()], trainer.clock.tokens]


class Watched(Rehearsal):
    """Records the trainer's state before and after."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = state_of(self._trainer)
        super().on_train_begin(args, state, control, **kwargs)
        self.after = state_of(self._trainer)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_rehearsing_leaves_no_trace(optim: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Bit for bit, with dropout, which draws random numbers, and weight decay, which acts even where gradients are zero."""
    options = {"dropout": 0.1, "optim": optim, "weight_decay": 0.1}
    plain = make_trainer(tiny_model_dir, tmp_path / "plain", **options)
    plain.train()
    told = Told()
    rehearsed = make_trainer(tiny_model_dir, tmp_path / "rehearsed", reporter=told, **options)
    rehearsal = Watched(rehearsed, told)
    rehearsed.add_callback(rehearsal)
    rehearsed.train()
    assert rehearsal.before == rehearsal.after
    assert losses(rehearsed) == losses(plain)
    assert gradient_norms(rehearsed) == gradient_norms(plain)
    assert all(torch.equal(adapter(rehearsed)[name], weights) for name, weights in adapter(plain).items())
    longest = rehearsed.train_dataset.lengths.max()
    assert told.notes == [f"longest batch (4 x {longest} tokens) fits"]
    assert rehearsal.peak_bytes is None


def test_a_resumed_training_rehearses_beside_the_state_it_has_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    options = {"dropout": 0.1, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tiny_model_dir, tmp_path, **options)
    whole.train()
    resumed = make_trainer(tiny_model_dir, tmp_path, **options)
    rehearsal = Watched(resumed, Told())
    resumed.add_callback(rehearsal)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rehearsal.before == rehearsal.after
    assert "exp_avg" in rehearsal.before[1]
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(adapter(resumed)[name], weights) for name, weights in adapter(whole).items())


def test_gradients_and_optimizer_state_are_there_when_the_batch_goes_through(tiny_model_dir: Path, tmp_path: Path) -> None:
    """As in the second pass of the second step, at the peak of memory."""
    trainer = make_trainer(tiny_model_dir, tmp_path)
    trainer.create_optimizer_and_scheduler(1)
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    held = []
    compute_loss = trainer.compute_loss

    def watching(*arguments: Any, **options: Any) -> torch.Tensor:
        trained = [weights for weights in trainer.model.parameters() if weights.requires_grad]
        held.append(all(weights.grad is not None and "exp_avg" in trainer.optimizer.state[weights] for weights in trained))
        return compute_loss(*arguments, **options)

    trainer.compute_loss = watching
    rehearse(trainer, longest_batch(trainer.train_dataset, 4))
    assert held == [True]
    assert not trainer.optimizer.state


def test_what_does_not_fit_is_found_before_the_first_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    told = Told()
    trainer = make_trainer(tiny_model_dir, tmp_path / "run", reporter=told)
    passes = []
    compute_loss = trainer.compute_loss

    def limited(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        passes.append(inputs["input_ids"].numel())
        if passes[-1] > 150:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return compute_loss(model, inputs, **options)

    trainer.compute_loss = limited
    trainer.add_callback(Rehearsal(trainer, told))
    trainer.train()
    expected = make_trainer(tiny_model_dir, tmp_path / "expected")
    expected.train()
    assert len(told.warnings) == sum(tokens > 150 for tokens in passes) == trainer.passes.retries
    assert told.warnings[0].startswith("longest batch: out of memory with 4 x ")
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-5)


def test_an_optimizer_that_does_not_fit_is_named(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: torch.optim.AdamW, closure: Any = None) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    trainer = make_trainer(tiny_model_dir, tmp_path)
    trainer.add_callback(Rehearsal(trainer, Told()))
    before = adapter(trainer)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(OutOfMemory, match="out of memory for gradients and optimizer state, before any batch") as raised:
        trainer.train()
    assert not isinstance(raised.value, DoesNotFit)
    assert raised.value.hint == "use --optim paged_adamw_8bit, or a smaller --lora-r"
    assert all(torch.equal(adapter(trainer)[name], weights) for name, weights in before.items())
