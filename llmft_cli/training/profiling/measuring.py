"""Measured memory and time of training steps with random data on a real GPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from llmft_cli.training.planning.simulation import BatchShape

WARMUP_STEPS = 2


@dataclass(frozen=True)
class Measured:
    """Peaks over all steps, and the median time of those after the warm-up.

    Attributes:
        peak_bytes: peak that torch allocated for tensors.
        reserved_bytes: peak that torch's allocator reserved.
        context_bytes: other memory of the process on the device.
        step_seconds: of one forward and backward pass and one optimizer step.
    """

    peak_bytes: int
    reserved_bytes: int
    context_bytes: int
    step_seconds: float


def measure(model: PeftModel, batch: BatchShape, optim: str, steps: int = 3) -> Measured:
    """Train a model on its GPU for a few steps with random tokens.

    Args:
        model: from `tuned_model.make_trainable` and `apply_plan`.
        steps: timed steps, after two warm-up steps.
    """
    import torch

    from llmft_cli.training.fast.cuda_graphs import recorded_passes
    from llmft_cli.training.step.loss import loss_and_gradients

    device = next(weights.device for weights in model.parameters() if weights.requires_grad)
    optimizer = make_optimizer(model, optim)
    work = partial(loss_and_gradients, model)
    recorded = recorded_passes(model, device, work)
    values = random_batch(batch, model.config.get_text_config().vocab_size, device)
    divisor = torch.tensor(float(batch.supervised), device=device)
    model.train()
    torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(WARMUP_STEPS + steps):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        # Gradients are not cleared, as in the second micro-batch of a step.
        (recorded.run if recorded else work)(values, divisor)
        optimizer.step()
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    return Measured(
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        total - free - reserved,
        sorted(seconds[WARMUP_STEPS:])[steps // 2],
    )


def make_optimizer(model: PeftModel, optim: str) -> torch.optim.Optimizer:
    from transformers import Trainer, TrainingArguments

    kind, options = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(output_dir="unused", optim=optim, report_to=[]))
    optimizer: torch.optim.Optimizer = kind([weights for weights in model.parameters() if weights.requires_grad], **options)
    return optimizer


def random_batch(batch: BatchShape, vocabulary: int, device: torch.device) -> dict[str, Any]:
    """A batch as from `collate.collate`, with random tokens and rows of equal length; the last tokens are supervised."""
    import torch

    ids = torch.randint(vocabulary, (batch.sequences, batch.length), device=device)
    row = batch.tokens // batch.rows
    positions = (torch.arange(batch.tokens, device=device) % row).view_as(ids)
    predicting = torch.arange(batch.tokens - 1, device=device)[-batch.supervised :]
    starts = torch.arange(batch.rows + 1, device=device, dtype=torch.int32) * row
    targets = ids.flatten()[predicting + 1]
    alone = batch.rows == batch.sequences
    rows = {"row_starts": starts, "longest_row": batch.longest_row, "first_rows_alone": alone}
    return {"input_ids": ids, "labels": ids, "position_ids": positions, "predicting": predicting, "targets": targets, **rows}
