"""The training batch that needs the most memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.token_batches import largest_batch

if TYPE_CHECKING:
    import datasets

    from llmft_cli.training.batches.collate import Batch

SEQUENCES_AT_A_TIME = 1000


def longest_batch(sequences: datasets.Dataset, batch_size: int, tokens_per_batch: int | None = None) -> Batch:
    """The batch that needs the most memory: the longest sequence, and the others with the most supervised tokens.

    Activations grow with the padded tokens, logits with the supervised ones. With `tokens_per_batch` it is a batch with
    the most padded tokens, whose sequences may be shorter.
    """
    tokens, supervised = token_counts(sequences)
    if tokens_per_batch is None:
        return collate([sequences[number] for number in longest_and_most_supervised(tokens, supervised, batch_size)])
    largest = largest_batch(tokens.tolist(), tokens_per_batch)
    within = numpy.flatnonzero(tokens <= largest.length)
    chosen = longest_and_most_supervised(tokens[within], supervised[within], largest.sequences)
    return collate([sequences[number] for number in within[chosen].tolist()], int(tokens.max()))


def longest_and_most_supervised(tokens: Any, supervised: Any, count: int) -> list[int]:
    """The index of the longest sequence, then those of the others with the most supervised tokens."""
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
