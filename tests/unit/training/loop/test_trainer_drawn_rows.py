"""Training on sequences that draw other rows in each epoch: all rows come once an epoch, and resuming finds the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from llmft_cli.training.batches.largest import longest_batch
from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.loop.trainer import QLoRATrainer

from ..made_sequences import rows_of
from ..tiny_training import adapter, losses, make_trainer

ROWS = 90
STEPS_PER_EPOCH = 4  # of 23 rows in eight passes
SIZES = [(6 + number * 7 % 24, 1 + number * 5 % 5) for number in range(ROWS)]


def drawing_trainer(model_dir: Path, folder: Path, **options: Any) -> tuple[QLoRATrainer, list[list[int]]]:
    """A trainer, and the numbers of the rows of each batch that it is about to be given. A row's tokens are its number."""
    passes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    trainer = make_trainer(model_dir, folder, max_steps=3 * STEPS_PER_EPOCH, dropout=0.1, **passes, **options)
    trainer.train_dataset = Sequences.drawn(rows_of(*SIZES), 24, 8, seed=5)
    seen: list[list[int]] = []
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        # The first supervised token of each row; padding has none.
        edges, targets = inputs["row_starts"], inputs["targets"]
        row_of = torch.searchsorted(edges.long(), inputs["predicting"], right=True)
        seen.append([int(targets[row_of == row][0]) for row in row_of.unique()])
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    return trainer, seen


@pytest.mark.slow
def test_a_resumed_training_draws_the_rows_that_were_next(tiny_model_dir: Path, tmp_path: Path) -> None:
    """In the middle of the second epoch, where accelerate tells only the sampler which epoch it is."""
    middle = STEPS_PER_EPOCH + 2
    whole, seen = drawing_trainer(tiny_model_dir, tmp_path, save_strategy="steps", save_steps=middle)
    whole.train()
    batches = len(seen) // 3
    epochs = [seen[epoch * batches : (epoch + 1) * batches] for epoch in range(3)]
    for epoch in epochs:
        assert {row for batch in epoch for row in batch} == set(range(ROWS))
    assert epochs[0] != epochs[1] != epochs[2]
    resumed, seen_later = drawing_trainer(tiny_model_dir, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{middle}"))
    assert seen_later == seen[-len(seen_later) :]
    assert len(seen_later) > batches
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(adapter(resumed)[name], weights) for name, weights in adapter(whole).items())


def test_the_batch_that_is_tried_first_is_as_large_as_any(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer, _ = drawing_trainer(tiny_model_dir, tmp_path)
    worst = longest_batch(trainer.train_dataset, 1)
    loader = trainer.get_train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            assert batch["input_ids"].numel() <= worst["input_ids"].numel()
            assert len(batch["predicting"]) <= len(worst["predicting"])


def test_a_step_does_not_walk_through_the_modules_of_the_model(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipping and clearing the gradients did, and took 20 ms of the 29 of a small model's step on an H200."""
    walks: list[int] = []
    named_parameters = torch.nn.Module.named_parameters

    def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if isinstance(module, PeftModel):
            walks.append(1)
        return named_parameters(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "named_parameters", counted)
    counts = []
    for steps in (2, 5):
        trainer = make_trainer(tiny_model_dir, tmp_path / str(steps), max_steps=steps, max_grad_norm=0.3)
        walks.clear()
        trainer.train()
        counts.append(len(walks))
    assert counts[0] == counts[1]
