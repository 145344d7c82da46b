"""Packing: several short rows share a sequence. `train` packs; `prepare` reports how full the sequences would be."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack rows by best-fit-decreasing: longest first, each where it leaves the least space.

    Args:
        lengths: tokens of each row, none above `capacity`.
        capacity: tokens a sequence may hold.

    Returns:
        For each sequence the indices of its rows; rows are never split or dropped.
    """
    import numpy

    sequences: list[list[int]] = []
    # Sequences by their free tokens; there are at most `capacity` different values.
    with_free: dict[int, list[int]] = {}
    free_sizes: list[int] = []
    for row in numpy.argsort(-numpy.asarray(lengths, numpy.int64), kind="stable").tolist():
        fit = bisect_left(free_sizes, lengths[row])
        if fit < len(free_sizes):
            free = free_sizes[fit]
            sequence = with_free[free].pop()
            if not with_free[free]:
                del with_free[free], free_sizes[fit]
            sequences[sequence].append(row)
        else:
            free, sequence = capacity, len(sequences)
            sequences.append([row])
        left = free - lengths[row]
        if left not in with_free:
            with_free[left] = []
            insort(free_sizes, left)
        with_free[left].append(sequence)
    return sequences
