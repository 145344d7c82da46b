"""Batches of as many sequences as a number of tokens holds, padding included: how many there are, and of what shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.base.errors import ConfigError

if TYPE_CHECKING:
    import datasets

LENGTHS_PER_DOUBLING = 8
SMALLEST_STEP = 8


class TokenBatch(NamedTuple):
    """Where a batch begins among all sequences, longest first; how many it has; and the tokens that each is padded to."""

    start: int
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.sequences * self.length


def sequence_lengths(sequences: datasets.Dataset) -> list[int]:
    """Tokens of every sequence of a split."""
    return [sum(lengths) for lengths in sequences["row_lengths"]]


def padded_length(length: int, longest: int) -> int:
    """The tokens that a sequence counts for: rounded up by less than an eighth (a short one by 7), to `longest` at most.

    So batches come in few shapes, each of which a GPU may have a recording of; and sequences that count for the
    same can change places.
    """
    below = (1 << (length - 1).bit_length()) // 2  # the power of two below it
    step = max(SMALLEST_STEP, below // LENGTHS_PER_DOUBLING)
    return min(-(-length // step) * step, longest)


def sequences_that_fill(tokens_per_batch: int, longest: int) -> int:
    """How many sequences of the longest length a batch holds.

    Raises:
        ConfigError: not even one.
    """
    if tokens_per_batch < longest:
        raise ConfigError(
            f"--tokens-per-batch {tokens_per_batch} is less than the longest sequence has, {longest} tokens",
            f"use --tokens-per-batch {longest} or more, or prepare the data with a smaller --max-seq-length",
        )
    return tokens_per_batch // longest


def token_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[TokenBatch]:
    """The batches of an epoch: sequences from the longest to the shortest, in each batch as many as fit.

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
    """That of an epoch's batches with the most tokens, padding included; of several, the one with the longest sequences."""
    return max(token_batches(lengths, tokens_per_batch), key=lambda batch: (batch.tokens, batch.length))
