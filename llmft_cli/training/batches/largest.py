"""The training batch that needs the most memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.token_batches import largest_batch

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch
    from llmft_cli.training.batches.sequences import Sequences


def longest_batch(sequences: Sequences, batch_size: int, tokens_per_batch: int | None = None) -> Batch:
    """The batch that needs the most memory: the longest sequence, and the others with the most supervised tokens.

    Activations grow with the padded tokens, logits with the supervised ones. With `tokens_per_batch` it is a batch with
    the most padded tokens, whose sequences may be shorter. If rows are drawn, no batch of any epoch is larger.
    """
    tokens, supervised = sequences.figures.tokens, sequences.figures.supervised
    if tokens_per_batch is None:
        return collate([sequences.at_most(number) for number in longest_and_most_supervised(tokens, supervised, batch_size)])
    largest = largest_batch(tokens.tolist(), tokens_per_batch)
    within = numpy.flatnonzero(tokens <= largest.length)
    chosen = longest_and_most_supervised(tokens[within], supervised[within], largest.sequences)
    return collate([sequences.at_most(number) for number in within[chosen].tolist()], int(tokens.max()))


def longest_and_most_supervised(tokens: Any, supervised: Any, count: int) -> list[int]:
    """The index of the longest sequence, then those of the others with the most supervised tokens."""
    longest = int(tokens.argmax())
    by_supervised = numpy.argsort(-supervised, kind="stable").tolist()
    return [longest, *[number for number in by_supervised if number != longest][: count - 1]]
