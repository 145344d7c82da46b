"""Which rows are held out."""

from __future__ import annotations

from collections import Counter

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.base.errors import DataError
from llmft_cli.data.splitting import merged_groups, repeated, split_by_group, wanted_rows


@pytest.mark.parametrize(
    ("val_size", "rows", "wanted"),
    [(0.05, 1000, 50), (0.05, 3, 1), (0, 100, 0), (7, 100, 7), (99, 100, 99), (0.5, 1, 0), (0.999, 10, 9)],
)
def test_how_many_rows_are_held_out(val_size: float, rows: int, wanted: int) -> None:
    assert wanted_rows(val_size, rows) == wanted


@pytest.mark.parametrize(
    ("val_size", "rows", "said"),
    [
        (2, 2, "--val-size 2 leaves no row to train on: there are only 2 usable rows"),
        (200, 100, "--val-size 200 leaves no row to train on: there are only 100 usable rows"),
        (1, 1, "--val-size 1 leaves no row to train on: there is only one usable row"),
    ],
)
def test_a_number_of_held_out_rows_that_leaves_none_to_train_on_is_refused(val_size: float, rows: int, said: str) -> None:
    """`--val-size 2` of two rows held one out in silence."""
    with pytest.raises(DataError) as raised:
        wanted_rows(val_size, rows)
    assert raised.value.message == said
    assert "--val-size" in raised.value.hint


def test_rows_that_stand_alone_are_split_exactly_and_by_seed() -> None:
    groups = numpy.arange(100)
    first, again, other = (split_by_group(groups, 10, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.validation != other.validation
    assert (len(first.train), len(first.validation), first.leaking) == (90, 10, 0)
    assert sorted(first.train + first.validation) == list(range(100))


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=40), wanted=st.integers(0, 30), seed=st.integers(0, 5))
def test_a_group_is_never_torn_without_a_word(sizes: list[int], wanted: int, seed: int) -> None:
    groups = numpy.repeat(numpy.arange(len(sizes)) * 3, sizes)
    numpy.random.default_rng(seed).shuffle(groups)
    wanted = min(wanted, len(groups) - 1)
    split = split_by_group(groups, wanted, seed)
    torn = {int(groups[row]) for row in split.train} & {int(groups[row]) for row in split.validation}
    assert len(torn) <= split.leaking
    assert sorted(split.train + split.validation) == list(range(len(groups)))
    assert wanted / 2 <= len(split.validation) <= wanted


def test_data_of_a_single_group_is_split_all_the_same_and_says_so() -> None:
    split = split_by_group(numpy.zeros(20, int), 3, 42)
    assert (split.validation, len(split.train), split.leaking) == ([0, 1, 2], 17, 1)


def test_groupings_are_merged() -> None:
    """Rows 0 and 1 share a prompt, rows 1 and 3 are near-duplicates."""
    prompts = numpy.array([7, 7, -1, -2, -3])
    near = numpy.array([0, 1, 2, 1, 4])
    merged = merged_groups(prompts, near)
    assert merged[0] == merged[1] == merged[3]
    assert len({int(merged[0]), int(merged[2]), int(merged[4])}) == 3


def test_rows_are_used_as_often_as_their_source_weighs() -> None:
    rows = list(range(1000))
    sources = [row % 3 for row in rows]
    counts = Counter(repeated(rows, sources, [1.0, 2.5, 0.25], seed=3))
    assert {counts[row] for row in rows[::3]} == {1}
    assert {counts[row] for row in rows[1::3]} == {2, 3}
    assert sum(counts[row] for row in rows[1::3]) == pytest.approx(2.5 * 333, rel=0.05)
    assert sum(counts[row] for row in rows[2::3]) == pytest.approx(0.25 * 333, rel=0.2)
    assert repeated(rows, sources, [1, 1, 1], seed=3) == rows
