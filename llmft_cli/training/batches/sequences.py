"""The sequences that training goes through: which rows share one, in each epoch.

Only numbers about rows are in memory; their tokens stay on disk, and are read when a sequence is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.data.packing import pack
from llmft_cli.recipe.settle import counts_rows
from llmft_cli.settings.config import Config
from llmft_cli.training.batches.groups import DrawnGroups, FixedGroups
from llmft_cli.training.batches.stored_rows import StoredRows

if TYPE_CHECKING:
    import datasets

    from llmft_cli.training.batches.groups import Int64


def training_sequences(rows: datasets.Dataset, config: Config) -> Sequences:
    """The sequences to train on. They depend on rows and settings alone, so a resumed training has the same.

    Args:
        rows: the training split, as `data/store.py` reads it.
        config: with the `max_seq_length` that the rows were prepared with.
    """
    if counts_rows(config) and config.packing:
        return Sequences.drawn(rows, config.rows_per_step, 1, config.seed)
    return Sequences.packed(rows, config.max_seq_length) if config.packing else Sequences.one_each(rows)


@dataclass(frozen=True)
class SequenceFigures:
    """Figures of each sequence, or what they are at most in any epoch; each of shape (sequences,).

    Attributes:
        tokens, supervised: tokens, and those that are learned.
        squared_rows: sum of the squared lengths of its rows, which attention costs.
        longest_row: in tokens.
    """

    tokens: Int64
    supervised: Int64
    squared_rows: Int64
    longest_row: Int64

    def no_longer_than(self, length: int) -> SequenceFigures:
        """The figures of the sequences of at most so many tokens."""
        which = self.tokens <= length
        return SequenceFigures(**{name: values[which] for name, values in vars(self).items()})


class Sequences:
    """Sequences of one or more rows, a map-style dataset as torch's loaders take them.

    `sequences[number]` has `input_ids` and `labels` of shape (tokens,), and `row_lengths`, the tokens of each row.

    Attributes:
        rows: the rows of all sequences.
        lengths: tokens of each sequence, or the most it has in any epoch, of shape (sequences,).
    """

    def __init__(self, rows: StoredRows, groups: FixedGroups | DrawnGroups) -> None:
        self.rows = rows
        self._groups = groups
        self.lengths: Int64 = groups.totals(rows.lengths)

    @classmethod
    def grouped(cls, rows: datasets.Dataset, groups: Sequence[Sequence[int]]) -> Sequences:
        """Sequences of these rows, by their numbers; the same ones in each epoch."""
        return cls(StoredRows(rows), fixed_groups(groups))

    @classmethod
    def one_each(cls, rows: datasets.Dataset) -> Sequences:
        """A sequence for each row."""
        stored = StoredRows(rows)
        return cls(stored, FixedGroups(numpy.arange(len(stored)), numpy.ones(len(stored), numpy.int64)))

    @classmethod
    def packed(cls, rows: datasets.Dataset, capacity: int) -> Sequences:
        """As few sequences as best-fit finds, of at most `capacity` tokens, or of the longest row if that has more."""
        return cls.one_each(rows).packed_anew(capacity)

    @classmethod
    def drawn(cls, rows: datasets.Dataset, rows_per_step: int, passes: int, seed: int) -> Sequences:
        """Sequences of about `rows_per_step / passes` rows, with nearly the same number of tokens; others in each epoch.

        Those of a step follow each other. See `DrawnGroups`.
        """
        stored = StoredRows(rows)
        return cls(stored, DrawnGroups(stored.lengths, rows_per_step, passes, seed))

    def packed_anew(self, capacity: int) -> Sequences:
        """The same rows, packed as `packed` does."""
        lengths = self.rows.lengths
        return Sequences(self.rows, fixed_groups(pack(lengths.tolist(), max(capacity, int(lengths.max())))))

    def in_passes(self, passes: int) -> Sequences:
        """The same steps in so many passes, if rows are drawn."""
        assert isinstance(self._groups, DrawnGroups)
        return Sequences(self.rows, self._groups.in_passes(passes))

    @property
    def rows_per_step(self) -> int | None:
        """If rows are drawn, those of each step."""
        return self._groups.rows_per_step if isinstance(self._groups, DrawnGroups) else None

    @property
    def passes(self) -> int | None:
        """How many sequences, one after the other, are a step; None if any may share one."""
        return self._groups.passes if isinstance(self._groups, DrawnGroups) else None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._sequence_of(self.members(number % len(self)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def _sequence_of(self, members: Int64) -> dict[str, Any]:
        input_ids, labels = self.rows.tokens(members)
        return {"input_ids": input_ids, "labels": labels, "row_lengths": self.rows.lengths[members]}

    def members(self, number: int) -> Int64:
        """The numbers of the rows that a sequence has in this epoch."""
        return self._groups.members(number)

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch: `batches/sampling.py` does."""
        self._groups.set_epoch(epoch)

    @property
    def row_counts(self) -> Int64:
        """Rows of each sequence, of shape (sequences,)."""
        return self._groups.totals(numpy.ones(len(self.rows), numpy.int64))

    @property
    def tokens(self) -> int:
        """Tokens of an epoch."""
        return int(self.rows.lengths.sum())

    @cached_property
    def figures(self) -> SequenceFigures:
        """Reads all labels, once."""
        lengths, groups = self.rows.lengths, self._groups
        supervised = groups.totals(self.rows.supervised)
        return SequenceFigures(self.lengths, supervised, groups.totals(lengths**2), groups.largest(lengths))

    def at_most(self, number: int) -> dict[str, Any]:
        """A sequence with the tokens and supervised tokens of `figures`: the largest that this one gets in any epoch.

        If rows are drawn, it is made of the longest row of each stratum, whose last tokens count as supervised: as many as
        in the stratum's row with the most.
        """
        if isinstance(self._groups, FixedGroups):
            return self[number]
        largest = self._sequence_of(self._groups.longest_members(number))
        ends = numpy.cumsum(largest["row_lengths"])
        places = numpy.arange(len(largest["input_ids"]))
        row_of = numpy.searchsorted(ends, places, "right")
        learned = places >= (ends - self._groups.maxima(self.rows.supervised)[self._groups.strata_of(number)])[row_of]
        return {**largest, "labels": numpy.where(learned, largest["input_ids"], IGNORED)}


def fixed_groups(groups: Sequence[Sequence[int]]) -> FixedGroups:
    sizes = numpy.array([len(group) for group in groups], numpy.int64)
    return FixedGroups(numpy.fromiter(chain.from_iterable(groups), numpy.int64, int(sizes.sum())), sizes)
