from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmft_cli.data.packing import pack

CAPACITY = 20


def test_longest_first_each_where_it_leaves_the_least_room() -> None:
    assert pack([3, 7, 5, 4, 1], 10) == [[1, 0], [2, 3, 4]]
    assert pack([10, 10], 10) == [[0], [1]]
    assert pack([2, 2, 2], 6) == [[0, 1, 2]]
    assert pack([], 10) == []


def fewest_sequences(lengths: tuple[int, ...], room: tuple[int, ...] = ()) -> int:
    """The least number of sequences, by trying every place for every row."""
    if not lengths:
        return len(room)
    first, rest = lengths[0], lengths[1:]
    places = {free: index for index, free in enumerate(room) if free >= first}
    tries = [fewest_sequences(rest, (*room[:index], free - first, *room[index + 1 :])) for free, index in places.items()]
    return min([*tries, fewest_sequences(rest, (*room, CAPACITY - first))])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, CAPACITY), max_size=60))
def test_every_row_once_and_none_over_capacity(lengths: list[int]) -> None:
    sequences = pack(lengths, CAPACITY)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in sequence) <= CAPACITY for sequence in sequences)
    assert sequences == pack(lengths, CAPACITY)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, CAPACITY), max_size=7))
def test_no_more_sequences_than_best_fit_decreasing_may_need(lengths: list[int]) -> None:
    fewest = fewest_sequences(tuple(lengths))
    assert -(-sum(lengths) // CAPACITY) <= fewest <= len(pack(lengths, CAPACITY)) <= 11 / 9 * fewest + 1
