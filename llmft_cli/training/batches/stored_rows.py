"""Reading the rows of a split from its memory-mapped columns: a row is a slice, and nothing is copied until it is used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from llmft_cli.data.forms.examples import IGNORED

if TYPE_CHECKING:
    import datasets
    from numpy.typing import NDArray

    Integers = NDArray[numpy.integer[Any]]
    Int64 = NDArray[numpy.int64]


class Chunk(NamedTuple):
    """Rows that lie together on disk: the values of a column, and where each row begins, with the end of the last."""

    values: Integers
    edges: Integers

    def row(self, number: int) -> Integers:
        return self.values[self.edges[number] : self.edges[number + 1]]


class StoredRows:
    """The rows of a split as `data/store.py` writes them.

    Attributes:
        lengths: tokens of each row, of shape (rows,).
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        table = rows.with_format("arrow")[:]
        self._input_ids, self._labels = chunks_of(table["input_ids"]), chunks_of(table["labels"])
        sizes = [len(chunk.edges) - 1 for chunk in self._input_ids]
        self._firsts = numpy.cumsum([0, *sizes[:-1]])
        self.lengths: Int64 = joined([numpy.diff(chunk.edges) for chunk in self._input_ids])

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, rows: Int64 | Sequence[int]) -> tuple[Integers, Integers]:
        """input_ids and labels of these rows, one after the other, each of shape (tokens,)."""
        chunks = numpy.searchsorted(self._firsts, rows, "right") - 1
        places = list(zip(chunks.tolist(), (rows - self._firsts[chunks]).tolist(), strict=True))
        input_ids = numpy.concatenate([self._input_ids[chunk].row(row) for chunk, row in places])
        return input_ids, numpy.concatenate([self._labels[chunk].row(row) for chunk, row in places])

    @cached_property
    def supervised(self) -> Int64:
        """Supervised tokens of each row, of shape (rows,). Reads all labels, once."""
        return joined([supervised_of(chunk) for chunk in self._labels])

    def beginning_with(self, input_ids: Sequence[int]) -> int | None:
        """The first row that begins with these tokens, or None."""
        for first, chunk in zip(self._firsts.tolist(), self._input_ids, strict=True):
            found = numpy.flatnonzero(numpy.diff(chunk.edges) >= len(input_ids))
            for place, token in enumerate(input_ids):
                found = found[chunk.values[chunk.edges[found] + place] == token]
            if len(found):
                return first + int(found[0])
        return None


def chunks_of(column: Any) -> list[Chunk]:
    """The parts of an Arrow column of lists, as arrays over its memory."""
    return [Chunk(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in column.chunks if len(chunk)]


def supervised_of(labels: Chunk) -> Int64:
    counts = numpy.concatenate([[0], numpy.cumsum(labels.values[: labels.edges[-1]] != IGNORED)])
    return numpy.diff(counts[labels.edges])


def joined(parts: Sequence[Integers]) -> Int64:
    return numpy.concatenate([numpy.empty(0, numpy.int64), *parts]).astype(numpy.int64, copy=False)
