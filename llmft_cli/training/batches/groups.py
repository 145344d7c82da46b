"""Which rows share a sequence: always the same ones, or others in each epoch.

Both kinds have `members(number)`, the rows of a sequence in the current epoch; `set_epoch`; and `totals` and `largest`, which
bound a figure of the sequences, given that of the rows, over all epochs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64 = NDArray[numpy.int64]


class FixedGroups:
    """The same rows share a sequence in all epochs.

    Args:
        rows: the numbers of the rows, sequence by sequence.
        sizes: rows of each sequence, at least one.
    """

    def __init__(self, rows: Int64, sizes: Int64) -> None:
        self._rows = rows
        self._edges = edges_of(sizes)

    def members(self, number: int) -> Int64:
        return self._rows[self._edges[number] : self._edges[number + 1]]

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on it."""

    def totals(self, of_rows: Int64) -> Int64:
        """A figure's sum over the rows of each sequence, of shape (sequences,)."""
        return numpy.add.reduceat(of_rows[self._rows], self._edges[:-1])

    def largest(self, of_rows: Int64) -> Int64:
        """A figure's maximum over the rows of each sequence, of shape (sequences,)."""
        return numpy.maximum.reduceat(of_rows[self._rows], self._edges[:-1])


class DrawnGroups:
    """In each epoch, every sequence draws one row of each stratum: of the longest rows, the next longest, and so on.

    So all sequences have nearly the same number of tokens, and rows meet others in each epoch. A sequence's rows are in
    the order of the strata. All strata have as many rows as there are sequences; the last may have fewer, and then the last
    sequences have a row fewer. What is drawn depends on seed and epoch alone.

    Attributes:
        sizes: rows of each sequence.
    """

    def __init__(self, lengths: Int64, rows_per_sequence: int, seed: int) -> None:
        """`lengths` are the tokens of each row; there are as many sequences as rows over `rows_per_sequence`, rounded up."""
        sequences = -(-len(lengths) // rows_per_sequence)
        by_length = numpy.argsort(-lengths, kind="stable")
        self._starts = numpy.arange(0, len(lengths), sequences)
        self._strata = numpy.split(by_length, self._starts[1:])
        self._by_length = by_length
        self.sizes: Int64 = numpy.full(sequences, len(self._strata), numpy.int64)
        self.sizes[len(self._strata[-1]) :] -= 1
        self._edges = edges_of(self.sizes)
        self._rows = numpy.empty(len(lengths), numpy.int64)
        self._seed = seed
        self._epoch: int | None = None
        self.set_epoch(0)

    def members(self, number: int) -> Int64:
        return self._rows[self._edges[number] : self._edges[number + 1]]

    def set_epoch(self, epoch: int) -> None:
        """Draw the rows of an epoch's sequences."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        generator = numpy.random.default_rng([self._seed, epoch])
        for place, stratum in enumerate(self._strata):
            self._rows[self._edges[: len(stratum)] + place] = generator.permutation(stratum)

    def longest_members(self, number: int) -> Int64:
        """The longest row of each stratum that a sequence draws from."""
        return self._by_length[self._starts[: self.sizes[number]]]

    def maxima(self, of_rows: Int64) -> Int64:
        """A figure's maximum over the rows of each stratum, of shape (strata,)."""
        return numpy.maximum.reduceat(of_rows[self._by_length], self._starts)

    def totals(self, of_rows: Int64) -> Int64:
        """What the sum of a figure over the rows of each sequence is at most, of shape (sequences,)."""
        return numpy.cumsum(self.maxima(of_rows))[self.sizes - 1]

    def largest(self, of_rows: Int64) -> Int64:
        """What the maximum of a figure over the rows of each sequence is at most, of shape (sequences,)."""
        return numpy.maximum.accumulate(self.maxima(of_rows))[self.sizes - 1]


def edges_of(sizes: Int64) -> Int64:
    """Where each sequence begins among the rows of all, and the end of the last."""
    return numpy.concatenate([numpy.zeros(1, numpy.int64), numpy.cumsum(sizes)])
