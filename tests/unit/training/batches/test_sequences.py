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
from llmft_cli.training.planning.decide import in_one_sequence

from ..made_sequences import rows_of

SIZES = some.lists(some.integers(2, 60).flatmap(lambda tokens: some.tuples(some.just(tokens), some.integers(1, tokens - 1))),
                   min_size=1, max_size=60)  # fmt: skip
DRAWN = some.tuples(SIZES, some.integers(1, 20), some.integers(1, 20), some.integers(0, 2**32 - 1))


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
    assert members(training_sequences(rows, resolve({**settings, "batch_size": 1}))) == [[2, 1], [0, 3]]
    assert len(training_sequences(rows, resolve({**settings, "packing": False}))) == 4
    drawn = training_sequences(rows, resolve({**settings, "rows_per_step": 2}))
    assert (drawn.rows_per_step, drawn.passes, len(drawn)) == (2, 1, 2)


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


def drawn_from(sizes: Any, rows_per_step: int, passes: int, seed: int) -> Sequences:
    whole = Sequences.drawn(rows_of(*sizes), rows_per_step, 1, seed)
    assert whole.rows_per_step is not None
    return whole.in_passes(min(passes, whole.rows_per_step))


@given(DRAWN, some.integers(0, 1000))
def test_every_step_has_as_many_rows_and_every_row_its_turn_in_each_epoch(drawn: Any, epoch: int) -> None:
    sizes, rows_per_step, _, _ = drawn
    sequences = drawn_from(*drawn)
    sequences.set_epoch(epoch)
    groups, passes, rows = members(sequences), sequences.passes, sequences.rows_per_step
    assert passes is not None
    assert rows is not None
    assert rows <= min(rows_per_step, len(sizes))
    assert len(groups) == passes * -(-len(sizes) // rows_per_step)
    steps = [flat(groups[start : start + passes]) for start in range(0, len(groups), passes)]
    assert {len(step) for step in steps} == {rows}
    assert all(len(set(step)) == rows for step in steps)
    assert {len(group) for group in groups} <= {rows // passes, -(-rows // passes)}
    assert set(flat(steps)) == set(range(len(sizes)))
    assert len(flat(steps)) - len(sizes) < rows
    again = drawn_from(*drawn)
    again.set_epoch(epoch)
    assert members(again) == groups


@given(DRAWN)
def test_a_step_learns_from_the_same_rows_however_many_passes_it_takes(drawn: Any) -> None:
    sizes, rows_per_step, passes, seed = drawn
    whole, split = drawn_from(sizes, rows_per_step, 1, seed), drawn_from(sizes, rows_per_step, passes, seed)
    groups = members(split)
    size = split.passes or 1
    joined = [sorted(flat(groups[start : start + size])) for start in range(0, len(groups), size)]
    assert joined == [sorted(group) for group in members(whole)]


@given(DRAWN)
def test_no_drawn_sequence_is_larger_than_what_is_planned_for(drawn: Any) -> None:
    """Nor than the sequence that is tried before training, in tokens and in those that are supervised."""
    sequences = drawn_from(*drawn)
    figures, worst = sequences.figures, longest_batch(sequences, 1)
    planned = in_one_sequence(figures)
    assert worst["input_ids"].shape == (1, planned.length)
    assert planned.supervised == figures.supervised.max()
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


def test_a_step_draws_one_row_of_each_stratum() -> None:
    lengths = [5, 40, 12, 6, 41, 13, 7]
    sequences = Sequences.drawn(rows_of(*((length, 1) for length in lengths)), 3, 1, seed=1)
    drawn = {tuple(lengths[row] for row in group) for epoch in range(60) for group in members_in(sequences, epoch)}
    assert drawn == set(itertools.product((41, 40, 13), (12, 7), (6, 5)))
    assert sequences.lengths.tolist() == [41 + 12 + 6] * 3
    assert sequences.in_passes(2).lengths.tolist() == [41 + 6, 12] * 3
    assert sequences.tokens == sum(lengths)


def members_in(sequences: Sequences, epoch: int) -> list[list[int]]:
    sequences.set_epoch(epoch)
    return members(sequences)


def test_rows_meet_others_in_each_epoch_and_with_each_seed() -> None:
    rows = rows_of(*((2 + number % 50, 1) for number in range(300)))
    sequences, other = Sequences.drawn(rows, 6, 1, seed=1), Sequences.drawn(rows, 6, 1, seed=2)
    first, second = members_in(sequences, 0), members_in(sequences, 1)
    pairs = [{pair for group in groups for pair in itertools.combinations(sorted(group), 2)} for groups in (first, second)]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])
    assert members(other) != first
    assert members_in(sequences, 0) == first


def test_drawn_sequences_have_nearly_the_same_number_of_tokens() -> None:
    """Sixteen rows of 40 to 80 tokens each: within a few percent of each other, and of the bound."""
    lengths = numpy.random.default_rng(3).integers(40, 81, 1600).tolist()
    sequences = Sequences.drawn(rows_of(*((length, 1) for length in lengths)), 16, 1, seed=1)
    tokens = [len(sequence["input_ids"]) for sequence in sequences]
    assert len(tokens) == 100
    assert max(tokens) <= sequences.lengths.max() < 1.05 * min(tokens)
