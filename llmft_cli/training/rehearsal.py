"""The longest batch goes first, so that what does not fit is known in the first minute; then all is as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy
import torch

from llmft_cli.base.errors import OutOfMemory, first_line
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.batches import collate
from llmft_cli.training.recovery import is_out_of_memory, random_state, set_random_state
from llmft_cli.training.token_batches import largest_batch

if TYPE_CHECKING:
    import datasets

    from llmft_cli.training.batches import Batch
    from llmft_cli.training.trainer import QLoRATrainer

SEQUENCES_AT_A_TIME = 1000


def longest_batch(sequences: datasets.Dataset, batch_size: int, tokens_per_batch: int | None = None) -> Batch:
    """The batch that takes the most memory: as long as the longest sequence, and with the most supervised tokens beside it.

    Activations grow with the padded tokens and logits with the supervised ones. Of batches of a number of tokens,
    it is one with the most padded tokens, whose sequences may be shorter.
    """
    tokens, supervised = token_counts(sequences)
    if tokens_per_batch is None:
        return collate([sequences[number] for number in longest_and_most_supervised(tokens, supervised, batch_size)])
    largest = largest_batch(tokens.tolist(), tokens_per_batch)
    within = numpy.flatnonzero(tokens <= largest.length)
    chosen = longest_and_most_supervised(tokens[within], supervised[within], largest.sequences)
    return collate([sequences[number] for number in within[chosen].tolist()], int(tokens.max()))


def longest_and_most_supervised(tokens: Any, supervised: Any, count: int) -> list[int]:
    """The number of the longest sequence, and those of the most supervised of the others."""
    longest = int(tokens.argmax())
    by_supervised = numpy.argsort(-supervised, kind="stable").tolist()
    return [longest, *[number for number in by_supervised if number != longest][: count - 1]]


def token_counts(sequences: datasets.Dataset) -> tuple[Any, Any]:
    """Tokens and supervised tokens of every sequence, each of shape (sequences,)."""
    tokens, supervised = [], []
    for table in sequences.select_columns(["labels"]).with_format("arrow").iter(SEQUENCES_AT_A_TIME):
        labels = table["labels"].combine_chunks()
        edges = labels.offsets.to_numpy()
        counts = numpy.cumsum(numpy.concatenate([[0], labels.values.to_numpy() != IGNORED]))
        tokens.append(numpy.diff(edges))
        supervised.append(numpy.diff(counts[edges]))
    return numpy.concatenate(tokens), numpy.concatenate(supervised)


def rehearse(trainer: QLoRATrainer, batch: Batch) -> int | None:
    """Run a batch forward and backward beside gradients and optimizer state, as in the midst of training.

    Returns:
        What torch held of the card at most, in bytes; None without a card.

    Raises:
        DoesNotFit: a single row of it takes too much.
    """
    on_gpu = trainer.args.device.type == "cuda"
    with everything_restored(trainer):
        fill_optimizer_state(trainer)
        failures = -1
        while failures != trainer.passes.retries:  # the peak is that of a run through which nothing failed
            failures = trainer.passes.retries
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            trainer.pass_through(batch)
        return torch.cuda.max_memory_reserved() if on_gpu else None


def fill_optimizer_state(trainer: QLoRATrainer) -> None:
    """Have gradients, and a fresh optimizer its state, by a step with gradients of zero.

    The state that a resumed training has loaded is there already. Paged state gives way when memory is short.

    Raises:
        OutOfMemory: they do not fit.
    """
    optimizer = trainer.optimizer.optimizer
    try:
        for weights in trainable(trainer):
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
    """Weights, gradients, optimizer and random state are afterwards as before; an optimizer that had no state has none."""
    device = trainer.args.device
    generators = random_state(device)
    weights_before = [weights.detach().to("cpu", copy=True) for weights in trainable(trainer)]
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
            for weights, values in zip(trainable(trainer), weights_before, strict=True):
                weights.copy_(values)
        set_random_state(generators, device)


def trainable(trainer: QLoRATrainer) -> list[torch.nn.Parameter]:
    return [weights for weights in trainer.model.parameters() if weights.requires_grad]
