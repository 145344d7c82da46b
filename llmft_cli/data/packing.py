"""Packing: which rows share a sequence, so that short rows do not waste it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows put together best-fit-decreasing: longest first, each where it leaves the least room.

    Args:
        lengths: tokens of each row, none above `capacity`.
        capacity: tokens a sequence may hold.

    Returns:
        For each sequence the indices of its rows; no row is broken and none is left out.
    """
    import numpy

    sequences: list[list[int]] = []
    # Open sequences by the tokens that they have free; there are at most `capacity` different rooms.
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for row in numpy.argsort(-numpy.asarray(lengths, numpy.int64), kind="stable").tolist():
        fit = bisect_left(rooms, lengths[row])
        if fit < len(rooms):
            free = rooms[fit]
            sequence = with_room[free].pop()
            if not with_room[free]:
                del with_room[free], rooms[fit]
            sequences[sequence].append(row)
        else:
            free, sequence = capacity, len(sequences)
            sequences.append([row])
        left = free - lengths[row]
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(sequence)
    return sequences
