"""Number and shapes of batches that are filled up to a number of tokens, padding included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.base.errors import ConfigError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from llmft_cli.training.batches.sequences import Sequences


LENGTHS_PER_DOUBLING = 8
SMALLEST_STEP = 8


class TokenBatch(NamedTuple):
    """A batch's first sequence (in the order longest first), its number of sequences, and their padded length."""

    start: int
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.sequences * self.length


def padded_length(length: int, longest: int) -> int:
    """A sequence's padded length: rounded up by less than 1/8 (a short one by at most 7), and at most `longest`.

    This gives few batch shapes, so that each can have a CUDA graph; sequences with the same padded length are
    interchangeable.
    """
    below = (1 << (length - 1).bit_length()) // 2  # the largest power of two below `length`
    step = max(SMALLEST_STEP, below // LENGTHS_PER_DOUBLING)
    return min(-(-length // step) * step, longest)


def sequences_that_fill(tokens_per_batch: int, longest: int) -> int:
    """How many sequences of the longest length fit in a batch.

    Raises:
        ConfigError: none.
    """
    if tokens_per_batch < longest:
        raise ConfigError(
            f"--tokens-per-batch {tokens_per_batch} is less than the longest sequence ({longest} tokens)",
            f"use --tokens-per-batch {longest} or more, or prepare the data with a smaller --max-seq-length",
        )
    return tokens_per_batch // longest


def token_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[TokenBatch]:
    """The batches of an epoch: sequences from longest to shortest, as many per batch as fit.

    Raises:
        ConfigError: the longest sequence does not fit.
    """
    longest = max(lengths)
    sequences_that_fill(tokens_per_batch, longest)
    padded = sorted((padded_length(length, longest) for length in lengths), reverse=True)
    batches = []
    start = 0
    while start < len(padded):
        fitting = tokens_per_batch // padded[start]
        batches.append(TokenBatch(start, min(fitting, len(padded) - start), padded[start]))
        start += fitting
    return batches


def largest_batch(lengths: Sequence[int], tokens_per_batch: int) -> TokenBatch:
    """The batch with the most tokens, padding included; of several, the one with the longest sequences."""
    return max(token_batches(lengths, tokens_per_batch), key=lambda batch: (batch.tokens, batch.length))


def smaller_batches(
    arguments: TrainingArguments, tokens_per_batch: int | None, sequences: Sequences, length: int, largest: int
) -> str | None:
    """The flags that limit passes with sequences of this length to `largest` tokens; None if no flags can."""
    if tokens_per_batch is not None:
        return f"--tokens-per-batch {largest}" if largest >= sequences.lengths.max() else None
    if largest < length or sequences.passes is not None:
        return None
    step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    size = max(count for count in range(1, largest // length + 1) if step % count == 0)
    return f"--batch-size {size} --gradient-accumulation-steps {step // size}"
