"""Try the longest batch before training, so that an out-of-memory error comes in the first minute; then restore all state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llmft_cli.base.errors import OutOfMemory, first_line
from llmft_cli.training.loop.smaller_passes import is_out_of_memory, random_state, set_random_state

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch
    from llmft_cli.training.loop.trainer import QLoRATrainer


def rehearse(trainer: QLoRATrainer, batch: Batch) -> int | None:
    """Run a batch forward and backward, with gradients and optimizer state allocated as in the middle of training.

    Returns:
        The peak of torch's reserved GPU memory in bytes; None on a CPU.

    Raises:
        DoesNotFit: a single row of it needs too much memory.
    """
    on_gpu = trainer.args.device.type == "cuda"
    with everything_restored(trainer):
        fill_optimizer_state(trainer)
        failures = -1
        while failures != trainer.passes.retries:  # repeat until a run succeeds without retries: its peak counts
            failures = trainer.passes.retries
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            trainer.pass_through(batch)
        return torch.cuda.max_memory_reserved() if on_gpu else None


def fill_optimizer_state(trainer: QLoRATrainer) -> None:
    """Allocate gradients and a new optimizer's state, by a step with gradients of zero.

    A resumed training run has already loaded its state. Paged state is evicted when memory is short, so it is not needed.

    Raises:
        OutOfMemory: they do not fit.
    """
    optimizer = trainer.optimizer.optimizer
    try:
        for weights in trainer.trained_weights:
            weights.grad = torch.zeros_like(weights)
        if not optimizer.state and not getattr(optimizer, "is_paged", False):
            optimizer.step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory for gradients and optimizer state, before any batch: {first_line(error)}",
            "use --optim paged_adamw_8bit, or a smaller --lora-r",
        ) from None


@contextmanager
def everything_restored(trainer: QLoRATrainer) -> Iterator[None]:
    """Restore weights, gradients, optimizer and random state at the end of the block."""
    device = trainer.args.device
    generators = random_state(device)
    weights_before = [weights.detach().to("cpu", copy=True) for weights in trainer.trained_weights]
    optimizer = trainer.optimizer.optimizer
    was_fresh = not optimizer.state
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        yield
    finally:
        trainer.model.zero_grad()
        if was_fresh:
            optimizer.state.clear()
            for group, before in zip(optimizer.param_groups, options, strict=True):
                group.update(before)
        with torch.no_grad():
            for weights, values in zip(trainer.trained_weights, weights_before, strict=True):
                weights.copy_(values)
        set_random_state(generators, device)
