"""Training that runs out of memory, wherever it does, has the same losses as one that does not."""

from __future__ import annotations

import functools
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import TrainerCallback

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.judgement.result import mean_loss
from llmft_cli.training.loop.held_out import held_out_loss
from llmft_cli.training.loop.smaller_passes import DoesNotFit, MemoryUse, Passes, find_rows, random_state, set_random_state
from llmft_cli.training.loop.trainer import QLoRATrainer
from llmft_cli.training.step import loss

from ..tiny_training import OUT_OF_MEMORY, Told, adapter, gradient_norms, losses, make_trainer, sequences

CPU = torch.device("cpu")


class Card:
    """Lets a trainer's passes fail: those of given numbers, counted from 0, or all above a capacity in tokens."""

    def __init__(self, trainer: QLoRATrainer, where: str, numbers: tuple[int, ...] = (), capacity: int = 10**9) -> None:
        self.passes: list[tuple[int, ...]] = []
        self._compute_loss = trainer.compute_loss
        self._where, self._numbers, self.capacity = where, numbers, capacity
        trainer.compute_loss = self.compute_loss
        # Its gradient comes when those of the second layer have been added already.
        names = dict(trainer.model.named_parameters())
        self._first_layer = next(weights for name, weights in names.items() if "layers.0" in name and "lora_B" in name)

    def compute_loss(self, model: Any, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
        fails = len(self.passes) in self._numbers or inputs["input_ids"].numel() > self.capacity
        self.passes.append(tuple(inputs["input_ids"].shape))
        if fails and self._where == "forward":
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        loss = self._compute_loss(model, inputs, **options)
        if fails:
            hook = self._first_layer.register_hook(lambda gradient: self.run_out(hook))
        return loss

    def run_out(self, hook: Any) -> None:
        hook.remove()
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)


@pytest.fixture(scope="module")
def undisturbed(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., QLoRATrainer]:
    @functools.cache
    def train(**options: Any) -> QLoRATrainer:
        trainer = make_trainer(tiny_model_dir, tmp_path_factory.mktemp("undisturbed"), **options)
        trainer.train()
        return trainer

    return train


def check_same_training(trainer: QLoRATrainer, expected: QLoRATrainer) -> None:
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-5)
    assert gradient_norms(trainer) == pytest.approx(gradient_norms(expected), rel=1e-4)
    assert trainer.clock.tokens == expected.clock.tokens
    weights, wanted = (torch.cat([values.flatten() for values in adapter(one).values()]) for one in (trainer, expected))
    assert (weights - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("packing", [True, False])
def test_memory_that_runs_out_in_any_pass_changes_no_loss(
    where: str, number: int, packing: bool, tiny_model_dir: Path, tmp_path: Path, undisturbed: Callable[..., QLoRATrainer]
) -> None:
    trainer = make_trainer(tiny_model_dir, tmp_path, packing=packing)
    card = Card(trainer, where, (number,))
    trainer.train()
    assert trainer.passes.retries == 1
    assert trainer.passes.largest == card.passes[number][0] * card.passes[number][1] // 2
    check_same_training(trainer, undisturbed(packing=packing))


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_passes_shrink_until_they_fit(
    accumulation: int, packing: bool, where: str, tiny_model_dir: Path, tmp_path: Path, undisturbed: Callable[..., QLoRATrainer]
) -> None:
    """With 45 tokens, a packed sequence must be split between its rows; each row has fewer than 30."""
    options = {"packing": packing, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(tiny_model_dir, tmp_path, **options)
    card = Card(trainer, where, capacity=45)
    trainer.train()
    assert trainer.passes.largest is not None
    assert trainer.passes.largest <= 45 or not packing
    assert trainer.passes.retries >= 2
    assert sum(sequences * tokens > 45 for sequences, tokens in card.passes) == trainer.passes.retries
    check_same_training(trainer, undisturbed(**options))


def test_the_smaller_pass_is_told_once_and_stays(tiny_model_dir: Path, tmp_path: Path) -> None:
    told = Told()
    trainer = make_trainer(tiny_model_dir, tmp_path, reporter=told)
    card = Card(trainer, "forward", (2,))
    trainer.train()
    sequences_, tokens = card.passes[2]
    limit = sequences_ * tokens // 2
    assert sequences_ == 4
    assert len(told.warnings) == 1
    assert told.warnings[0].startswith(f"step 2: out of memory with 4 x {tokens} tokens (beginning with rows ")
    assert told.warnings[0].endswith(
        f"): {OUT_OF_MEMORY}; continuing with at most {limit} tokens per pass; batch and loss stay the same "
        "(to start this way: --batch-size 2 --gradient-accumulation-steps 4)"
    )
    assert all(sequences_ * tokens <= limit for sequences_, tokens in card.passes[3:])


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "advice"),
    [
        (6, 1, "--batch-size 3 --gradient-accumulation-steps 2"),
        (7, 1, "--batch-size 1 --gradient-accumulation-steps 7"),
        (1, 2, "a smaller --max-seq-length"),
    ],
)
def test_the_advice_keeps_the_effective_batch(
    batch_size: int, accumulation: int, advice: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Three of seven sequences would fit, but seven is not a multiple of three."""
    told = Told()
    options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
    trainer = make_trainer(tiny_model_dir, tmp_path, reporter=told, **options)
    Card(trainer, "forward", (0,))
    trainer.train()
    assert [warning.rpartition("(to start this way: ")[2] for warning in told.warnings] == [f"{advice})"]


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"])
def test_cuda_says_it_in_other_words_too(words: str) -> None:
    raised = []

    def work(part: dict[str, torch.Tensor]) -> torch.Tensor:
        if not raised:
            raised.append(True)
            raise RuntimeError(words)
        return part["labels"][part["labels"] != IGNORED].sum()

    batch = collate(list(sequences(2, packing=True)))
    assert Passes(CPU).run([batch], work) == batch["labels"][batch["labels"] != IGNORED].sum()


def test_another_error_is_no_matter_of_memory() -> None:
    def work(part: dict[str, torch.Tensor]) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    passes = Passes(CPU)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        passes.run([collate(list(sequences(2, packing=True)))], work)
    assert passes.retries == 0


def test_what_the_failed_pass_held_is_let_go_before_the_next() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def work(part: dict[str, torch.Tensor]) -> torch.Tensor:
        assert all(reference() is None for reference in held)
        activations = torch.ones(8)
        held.append(weakref.ref(activations))
        if len(held) < 3:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return activations.sum()

    assert Passes(CPU).run([collate(list(sequences(4, packing=False)))], work) == 8 * (len(held) - 2)


class FullAfter(TrainerCallback):
    """Leaves no GPU memory free after a step."""

    def __init__(self, card: Card, step: int) -> None:
        self._card = card
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self._card.capacity = 0


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_row_that_does_not_fit_leaves_the_steps_before_it(where: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """With dropout, and a log every second step: resuming needs the random numbers and the losses of the steps done."""
    options = {"max_steps": 4, "logging_steps": 2, "dropout": 0.1, "save_strategy": "steps", "save_steps": 100}
    whole = make_trainer(tiny_model_dir, tmp_path / "whole", **options)
    whole.train()
    broken = make_trainer(tiny_model_dir, tmp_path / "broken", **options)
    card = Card(broken, where)
    broken.add_callback(FullAfter(card, 3))
    with pytest.raises(DoesNotFit, match=r"^a row of \d+ tokens does not fit: CUDA out of memory") as raised:
        broken.train()
    assert raised.value.exit_code == 5
    assert raised.value.failure.part["input_ids"].shape[0] == 1
    assert all(weights.grad is None for weights in broken.model.parameters())
    broken.save_completed_steps()
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["checkpoint-3"]

    resumed = make_trainer(tiny_model_dir, tmp_path / "broken", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken/checkpoint-3"))
    assert [row["step"] for row in resumed.state.log_history if "loss" in row] == [2, 3, 4]
    assert mean_loss(resumed.state) == pytest.approx(mean_loss(whole.state), rel=1e-6)
    weights = adapter(resumed)
    assert all(torch.equal(weights[name], wanted) for name, wanted in adapter(whole).items())


@pytest.mark.slow
def test_nothing_is_saved_before_the_first_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model_dir, tmp_path / "run")
    Card(trainer, "forward", capacity=0)
    with pytest.raises(DoesNotFit):
        trainer.train()
    trainer.save_completed_steps()
    assert not list(tmp_path.rglob("checkpoint-*"))


# -- evaluation


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_evaluating_in_smaller_passes_gives_the_same_loss(
    packing: bool, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    trainer = make_trainer(tiny_model_dir, tmp_path, packing=packing, reporter=told)
    expected = trainer.evaluate()["eval_loss"]
    passes: list[int] = []

    def summed_loss(model: Any, part: dict[str, torch.Tensor]) -> torch.Tensor:
        passes.append(part["input_ids"].numel())
        if passes[-1] > 60:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return original(model, part)

    original = loss.summed_loss
    monkeypatch.setattr(loss, "summed_loss", summed_loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    failures = sum(tokens > 60 for tokens in passes)
    assert failures == trainer.evaluation.passes.retries == len(told.warnings) > 0
    assert trainer.passes.retries == 0
    assert told.warnings[0].startswith("evaluating: out of memory with ")
    assert "(to start this way: --eval-batch-size " in told.warnings[0]
    passes.clear()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert max(passes) <= 60
    # As `llmft eval` asks for it, which starts with whole batches.
    assert held_out_loss(trainer.model, trainer.eval_dataset, 4, CPU).loss == pytest.approx(expected, rel=1e-6)


# -- what is told


def test_rows_are_found_in_the_data() -> None:
    """By the first row of each sequence; each of these sequences has three rows."""
    data = sequences(6, packing=True)
    batch = collate([data[4], data[1]])
    assert find_rows(batch, data.rows) == [13, 4]
    first, second, _ = data[4]["row_lengths"]
    part = {name: batch[name][:1, first : first + second - 1] for name in ("input_ids", "position_ids")}
    assert find_rows(part, data.rows) == [14]
    assert find_rows(batch, sequences(1, packing=True).rows) == []


def test_memory_is_told_by_who_held_it() -> None:
    used = MemoryUse(total=80 << 30, allocated=70 << 30, kept=6 << 30, reserved=72 << 30, others=3 << 29)
    assert str(used) == (
        "of 80.00 GiB, weights and optimizer used 6.00, the pass 64.00, torch's cache 2.00, CUDA and other processes 1.50"
    )


def test_random_state_is_put_back() -> None:
    state = random_state(CPU)
    drawn = [random.random(), float(numpy.random.rand()), float(torch.rand(()))]
    set_random_state(state, CPU)
    assert [random.random(), float(numpy.random.rand()), float(torch.rand(()))] == drawn
