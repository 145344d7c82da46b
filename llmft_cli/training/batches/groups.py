"""Which rows share a sequence: always the same ones, or others in each epoch.

Both kinds have `members(number)`, the rows of a sequence in the current epoch; `set_epoch`; and `totals` and `largest`, which
bound a figure of the sequences, given that of the rows, over all epochs.
"""

from __future__ import annotations

from copy import copy
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
    """In each epoch, every step draws one row of each stratum: of the longest rows, the next longest, and so on.

    So all steps have the same number of rows and nearly the same number of tokens, rows meet others in each epoch, and no
    step is larger than is known before. A step's rows are dealt to its passes, which are the sequences: of which rows a step
    learns does not depend on their number. What is drawn depends on seed and epoch alone.

    Each row is drawn once an epoch. Where the rows cannot be divided evenly, a stratum lacks a row in one step, for which one
    of its rows is drawn twice.

    Attributes:
        passes: of a step, which has the sequences from `passes * step` on.
        rows_per_step: fewer than asked for if there are too few rows, or if steps get more even.
    """

    def __init__(self, lengths: Int64, rows_per_step: int, passes: int, seed: int) -> None:
        """`lengths` are the tokens of each row; `passes` are at most as many as a step has rows."""
        self._by_length = numpy.argsort(-lengths, kind="stable")
        self._steps, self.rows_per_step = steps_and_rows(len(lengths), rows_per_step)
        self._strata = numpy.array_split(self._by_length, self.rows_per_step)
        self._starts = numpy.cumsum([0, *(len(stratum) for stratum in self._strata[:-1])])
        self.passes = passes
        self._seed = seed
        self._epoch: int | None = None
        self.set_epoch(0)

    def in_passes(self, passes: int) -> DrawnGroups:
        """The same draws, dealt to another number of passes."""
        other = copy(self)
        other.passes = passes
        return other

    def members(self, number: int) -> Int64:
        return self._drawn[number // self.passes, self.strata_of(number)]

    def strata_of(self, number: int) -> slice:
        """The strata that a sequence draws from, the longest first."""
        return slice(number % self.passes, None, self.passes)

    def set_epoch(self, epoch: int) -> None:
        """Draw the rows of an epoch's steps."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        generator = numpy.random.default_rng([self._seed, epoch])
        drawn = [generator.permutation(stratum) for stratum in self._strata]
        full = [numpy.append(rows, rows[0]) if len(rows) < self._steps else rows for rows in drawn]
        self._drawn: Int64 = generator.permutation(numpy.stack(full, axis=1))

    def longest_members(self, number: int) -> Int64:
        """The longest row of each stratum that a sequence draws from."""
        return self._by_length[self._starts[self.strata_of(number)]]

    def maxima(self, of_rows: Int64) -> Int64:
        """A figure's maximum over the rows of each stratum, of shape (strata,)."""
        return numpy.maximum.reduceat(of_rows[self._by_length], self._starts)

    def totals(self, of_rows: Int64) -> Int64:
        """What the sum of a figure over the rows of each sequence is at most, of shape (sequences,)."""
        maxima = self.maxima(of_rows)
        return numpy.tile([maxima[self.strata_of(number)].sum() for number in range(self.passes)], self._steps)

    def largest(self, of_rows: Int64) -> Int64:
        """What the maximum of a figure over the rows of each sequence is at most, of shape (sequences,)."""
        maxima = self.maxima(of_rows)
        return numpy.tile([maxima[self.strata_of(number)].max() for number in range(self.passes)], self._steps)


def steps_and_rows(rows: int, rows_per_step: int) -> tuple[int, int]:
    """Steps of an epoch, and the rows of each: as even as they can be, and at most as many as asked for."""
    steps = -(-rows // rows_per_step)
    return steps, -(-rows // steps)


def edges_of(sizes: Int64) -> Int64:
    """Where each sequence begins among the rows of all, and the end of the last."""
    return numpy.concatenate([numpy.zeros(1, numpy.int64), numpy.cumsum(sizes)])
