"""Training on batches filled by tokens: the same step as with other batches of the same rows, also when resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmft_cli.training.batches.token_batches import largest_batch, padded_length
from llmft_cli.training.loop.callbacks import Rehearsal
from llmft_cli.training.loop.trainer import QLoRATrainer

from ..made_sequences import sequences_of
from ..tiny_training import OUT_OF_MEMORY, Told, adapter, losses, make_trainer

TOKENS = 64


def recorded(trainer: QLoRATrainer) -> list[torch.Tensor]:
    """The batches that a trainer is about to be given, in the list that is returned."""
    seen: list[torch.Tensor] = []
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(inputs["input_ids"].clone())
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    return seen


def gradients_of_a_step(trainer: QLoRATrainer) -> list[torch.Tensor]:
    """With weights that let gradients through both matrices, the first step's, taken from weights that it leaves by them."""
    generator = torch.Generator().manual_seed(3)
    for weights in trainer.model.parameters():
        if weights.requires_grad:
            weights.data.normal_(std=0.1, generator=generator)
    before = adapter(trainer)
    trainer.train()
    return [before[name] - after for name, after in adapter(trainer).items()]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_a_step_is_that_of_the_same_rows_in_batches_of_a_number(tiny_model_dir: Path, tmp_path: Path, packing: bool) -> None:
    """Batches of unequal numbers of rows and of targets; the loss is the mean over the targets of all."""
    tokens = 3 * TOKENS if packing else TOKENS
    options: dict[str, Any] = {"packing": packing, "optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 0.0}
    by_tokens = make_trainer(
        tiny_model_dir,
        tmp_path,
        tokens_per_batch=tokens,
        gradient_accumulation_steps=3,
        lr_scheduler_type="constant",
        **options,
    )
    loader = by_tokens.get_train_dataloader()
    loader.set_epoch(0)
    rows = [number for _, batch in zip(range(3), loader.batch_sampler, strict=False) for number in batch]
    seen = recorded(by_tokens)
    gradients = gradients_of_a_step(by_tokens)
    assert len({len(ids) for ids in seen}) > 1
    assert sum(len(ids) for ids in seen) == len(rows)
    by_rows = make_trainer(
        tiny_model_dir,
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=-(-len(rows) // 2),
        lr_scheduler_type="constant",
        **options,
    )
    by_rows.train_dataset = sequences_of([by_tokens.train_dataset[number] for number in rows])
    for one, other in zip(gradients, gradients_of_a_step(by_rows), strict=True):
        assert one.abs().max() > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert losses(by_tokens) == pytest.approx(losses(by_rows), rel=1e-6)


def test_batches_hold_no_more_than_the_tokens_and_come_in_few_lengths(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_model_dir, tmp_path, packing=False, tokens_per_batch=TOKENS, gradient_accumulation_steps=1)
    lengths = trainer.train_dataset.lengths.tolist()
    batches = list(trainer.get_train_dataloader())
    assert max(batch["input_ids"].numel() for batch in batches) <= TOKENS
    assert sum(batch["token_count"] for batch in batches) == sum(lengths)
    assert {batch["input_ids"].shape[1] for batch in batches} <= {padded_length(one, max(lengths)) for one in lengths}
    assert len({len(batch["input_ids"]) for batch in batches}) > 1


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_the_batches_that_were_next(tiny_model_dir: Path, tmp_path: Path) -> None:
    """In the middle of the second epoch, with dropout, whose random numbers must be the same as well."""
    options: dict[str, Any] = {"packing": False, "tokens_per_batch": TOKENS, "dropout": 0.1, "gradient_accumulation_steps": 2}
    whole = make_trainer(tiny_model_dir, tmp_path, max_steps=14, save_strategy="steps", save_steps=8, **options)
    per_epoch = len(whole.get_train_dataloader())
    assert 8 < per_epoch < 16
    seen = recorded(whole)
    whole.train()
    resumed = make_trainer(tiny_model_dir, tmp_path, max_steps=14, **options)
    seen_later = recorded(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert len(seen_later) > 4
    assert all(torch.equal(one, other) for one, other in zip(seen[-len(seen_later) :], seen_later, strict=True))
    first, second = seen[:per_epoch], seen[per_epoch : 2 * per_epoch]
    assert [ids.tolist() for ids in first] != [ids.tolist() for ids in second]
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(adapter(resumed)[name], weights) for name, weights in adapter(whole).items())


def test_the_largest_batch_is_rehearsed(tiny_model_dir: Path, tmp_path: Path) -> None:
    told = Told()
    trainer = make_trainer(
        tiny_model_dir, tmp_path, packing=False, tokens_per_batch=TOKENS, reporter=told, gradient_accumulation_steps=1
    )
    trainer.add_callback(Rehearsal(trainer, told))
    trainer.train()
    largest = largest_batch(trainer.train_dataset.lengths.tolist(), TOKENS)
    assert largest.sequences > 2
    assert told.notes == [f"longest batch ({largest.sequences} x {largest.length} tokens) fits"]


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "advice"), [(TOKENS, "--tokens-per-batch 32"), (48, "a smaller --max-seq-length")])
def test_where_memory_runs_out_fewer_tokens_are_the_way(tiny_model_dir: Path, tmp_path: Path, tokens: int, advice: str) -> None:
    """As long as the longest row, of 29 tokens, has no more than those."""
    told = Told()
    options: dict[str, Any] = {"packing": False, "tokens_per_batch": tokens, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tiny_model_dir, tmp_path / "limited", reporter=told, **options)
    assert max(trainer.train_dataset.lengths.tolist()) == 29
    compute_loss = trainer.compute_loss

    def limited(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        if inputs["input_ids"].numel() > 32:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return compute_loss(model, inputs, **options)

    trainer.compute_loss = limited
    trainer.train()
    expected = make_trainer(tiny_model_dir, tmp_path / "expected", **options)
    expected.train()
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-5)
    assert f"(to start this way: {advice})" in told.warnings[0]
