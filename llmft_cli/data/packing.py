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
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, sequence), sorted
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        fit = bisect_left(room, (lengths[row], -1))
        if fit < len(room):
            free, sequence = room.pop(fit)
            sequences[sequence].append(row)
        else:
            free, sequence = capacity, len(sequences)
            sequences.append([row])
        insort(room, (free - lengths[row], sequence))
    return sequences
