"""Which rows share a sequence in each epoch, and that nothing is larger than what memory is planned for."""

from __future__ import annotations

import itertools
from typing import Any

import datasets
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as some

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.largest import longest_batch
from llmft_cli.training.batches.sequences import Sequences, training_sequences
from llmft_cli.training.planning.decide import worst_batches

from ..made_sequences import rows_of

SIZES = some.lists(some.integers(2, 60).flatmap(lambda tokens: some.tuples(some.just(tokens), some.integers(1, tokens - 1))),
                   min_size=1, max_size=60)  # fmt: skip
DRAWN = some.tuples(SIZES, some.integers(1, 20), some.integers(0, 2**32 - 1))


def members(sequences: Sequences) -> list[list[int]]:
    return [sequences.members(number).tolist() for number in range(len(sequences))]


def flat(groups: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(groups))


def tokens_of(sequence: dict[str, Any]) -> tuple[int, int]:
    """Tokens, and supervised ones."""
    return len(sequence["input_ids"]), int((sequence["labels"] != IGNORED).sum())


# -- the same rows in each epoch


def test_rows_are_packed_into_as_few_sequences_as_best_fit_finds() -> None:
    sequences = Sequences.packed(rows_of((6, 2), (3, 1), (7, 3), (1, 1)), 10)
    assert members(sequences) == [[2, 1], [0, 3]]
    assert sequences.lengths.tolist() == [10, 7]
    first = sequences[0]
    assert first["input_ids"].tolist() == [2] * 7 + [1] * 3
    assert first["labels"].tolist() == [IGNORED] * 4 + [2] * 3 + [IGNORED] * 2 + [1]
    assert first["row_lengths"].tolist() == [7, 3]
    assert sequences.tokens == 17
    figures = sequences.figures
    assert [values.tolist() for values in vars(figures).values()] == [[10, 7], [4, 3], [58, 37], [7, 6]]
    assert [values.tolist() for values in vars(figures.no_longer_than(7)).values()] == [[7], [3], [37], [6]]
    sequences.set_epoch(3)
    assert members(sequences) == [[2, 1], [0, 3]]


def test_a_row_that_is_longer_than_the_capacity_sets_it() -> None:
    assert members(Sequences.packed(rows_of((12, 2), (3, 1), (9, 3)), 8)) == [[0], [2, 1]]


def test_each_row_may_have_a_sequence_of_its_own() -> None:
    sequences = Sequences.one_each(rows_of((6, 2), (3, 1)))
    assert members(sequences) == [[0], [1]]
    assert [tokens_of(sequence) for sequence in sequences] == [(6, 2), (3, 1)]
    assert sequences.at_most(1)["input_ids"].tolist() == [1] * 3
    with pytest.raises(IndexError):
        sequences[2]


def test_the_settings_choose() -> None:
    rows = rows_of((6, 2), (3, 1), (7, 3), (1, 1))
    settings = {"max_seq_length": 10}
    assert members(training_sequences(rows, resolve(settings))) == [[2, 1], [0, 3]]
    assert len(training_sequences(rows, resolve({**settings, "packing": False}))) == 4


def test_rows_on_disk_may_lie_in_several_parts() -> None:
    """As `data/store.py` writes them, about a million tokens at a time."""
    parts = datasets.concatenate_datasets([rows_of((2, 1), (3, 1)), rows_of((4, 2)), rows_of((5, 3), (6, 4), (2, 1))])
    sequences = Sequences.grouped(parts, [[5, 0, 3], [2], [4, 1]])
    assert sequences[0]["input_ids"].tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0]
    assert [tokens_of(sequence) for sequence in sequences] == [(9, 5), (4, 2), (9, 5)]
    assert sequences.figures.supervised.tolist() == [5, 2, 5]
    assert sequences.rows.beginning_with([0, 0, 0, 0]) == 2
    assert sequences.rows.beginning_with([1, 1, 1, 1]) == 4
    assert sequences.rows.beginning_with([2, 1]) is None


# -- rows drawn anew in each epoch


@given(DRAWN, some.integers(0, 1000))
def test_an_epoch_has_every_row_once_in_sequences_of_as_many_rows_or_one_fewer(drawn: Any, epoch: int) -> None:
    sizes, rows_per_sequence, seed = drawn
    sequences = Sequences.drawn(rows_of(*sizes), rows_per_sequence, seed)
    sequences.set_epoch(epoch)
    groups = members(sequences)
    assert sorted(flat(groups)) == list(range(len(sizes)))
    assert len(groups) == -(-len(sizes) // rows_per_sequence)
    counts = {len(group) for group in groups}
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= rows_per_sequence
    again = Sequences.drawn(rows_of(*sizes), rows_per_sequence, seed)
    again.set_epoch(epoch)
    assert members(again) == groups


@given(DRAWN)
def test_no_drawn_sequence_is_larger_than_what_is_planned_for(drawn: Any) -> None:
    """Nor than the sequence that is tried before training, in tokens and in those that are supervised."""
    sizes, rows_per_sequence, seed = drawn
    sequences = Sequences.drawn(rows_of(*sizes), rows_per_sequence, seed)
    figures, worst, planned = sequences.figures, longest_batch(sequences, 2), worst_batches(sequences)(2)
    assert worst["input_ids"].shape == (min(2, len(sequences)), planned.length)
    assert len(worst["predicting"]) == planned.supervised
    for number in range(len(sequences)):
        assert tokens_of(sequences.at_most(number)) == (figures.tokens[number], figures.supervised[number])
    for epoch in range(4):
        sequences.set_epoch(epoch)
        for number, sequence in enumerate(sequences):
            tokens, supervised = tokens_of(sequence)
            squares, longest = (sequence["row_lengths"] ** 2).sum(), sequence["row_lengths"].max()
            assert tokens <= sequences.lengths[number] == figures.tokens[number] <= planned.length
            assert supervised <= figures.supervised[number]
            assert squares <= figures.squared_rows[number]
            assert longest <= figures.longest_row[number] <= planned.longest_row


def test_a_sequence_draws_one_row_of_each_stratum() -> None:
    lengths = [5, 40, 12, 6, 41, 13, 7]
    sequences = Sequences.drawn(rows_of(*((length, 1) for length in lengths)), 3, seed=1)
    drawn = {tuple(lengths[row] for row in group) for epoch in range(40) for group in members_in(sequences, epoch)}
    # Of 41, 40 and 13; of 12, 7 and 6; and of 5, for the first sequence alone.
    assert drawn == {(one, other, 5) for one in (41, 40, 13) for other in (12, 7, 6)} | {
        (one, other) for one in (41, 40, 13) for other in (12, 7, 6)
    }
    assert sequences.lengths.tolist() == [41 + 12 + 5, 41 + 12, 41 + 12]
    assert sequences.tokens == sum(lengths)


def members_in(sequences: Sequences, epoch: int) -> list[list[int]]:
    sequences.set_epoch(epoch)
    return members(sequences)


def test_rows_meet_others_in_each_epoch_and_with_each_seed() -> None:
    rows = rows_of(*((2 + number % 50, 1) for number in range(300)))
    sequences, other = Sequences.drawn(rows, 6, seed=1), Sequences.drawn(rows, 6, seed=2)
    first, second = members_in(sequences, 0), members_in(sequences, 1)
    pairs = [{pair for group in groups for pair in itertools.combinations(sorted(group), 2)} for groups in (first, second)]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])
    assert members(other) != first
    assert members_in(sequences, 0) == first


def test_drawn_sequences_have_nearly_the_same_number_of_tokens() -> None:
    """Sixteen rows of 40 to 80 tokens each: within a few percent of each other, and of the bound."""
    lengths = numpy.random.default_rng(3).integers(40, 81, 1600).tolist()
    sequences = Sequences.drawn(rows_of(*((length, 1) for length in lengths)), 16, seed=1)
    tokens = [len(sequence["input_ids"]) for sequence in sequences]
    assert len(tokens) == 100
    assert max(tokens) <= sequences.lengths.max() < 1.05 * min(tokens)
