"""Chooses the held-out rows by seed, and repeats the others by weight."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import DataError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Integers = NDArray[numpy.integer[Any]]


@dataclass(frozen=True)
class Split:
    """Row numbers in order; `leaking` counts the groups that had to go on both sides."""

    train: list[int]
    validation: list[int]
    leaking: int = 0


def wanted_rows(val_size: float, rows: int) -> int:
    """How many rows to hold out: at least one unless `val_size` is 0, leaving at least one for training.

    Raises:
        DataError: a number of rows is wanted that leaves none for training.
    """
    if val_size >= max(rows, 1):
        only = "is only one usable row" if rows == 1 else f"are only {rows} usable rows"
        raise DataError(
            f"--val-size {val_size:.0f} leaves no row to train on: there {only}",
            "hold fewer rows out, as in --val-size 5%, or none with --val-size 0",
        )
    wanted = val_size if val_size >= 1 else val_size * rows
    return min(max(round(wanted), 1 if val_size else 0), rows - 1)


def split_by_group(groups: Integers, wanted: int, seed: int) -> Split:
    """Hold out whole groups up to `wanted` rows, so that similar rows stay on the same side.

    If that gives less than half of `wanted`, because groups are too large, the smallest groups go on both sides.

    Args:
        groups: for each row the number of its group, of shape (rows,).
    """
    import numpy

    _, group_of, sizes = numpy.unique(groups, return_inverse=True, return_counts=True)
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    held_out: list[int] = []
    missing = wanted
    for group in order:
        if sizes[group] <= missing:
            held_out.append(group)
            missing -= int(sizes[group])
        if not missing:
            break
    is_held_out = numpy.isin(group_of, held_out)
    leaking = 0
    if missing > wanted / 2:
        for group in sorted(set(order).difference(held_out), key=lambda group: (int(sizes[group]), group)):
            members = numpy.flatnonzero(group_of == group)[:missing]
            is_held_out[members] = True
            missing -= len(members)
            leaking += 1
            if not missing:
                break
    numbers = numpy.arange(len(groups))
    return Split(numbers[~is_held_out].tolist(), numbers[is_held_out].tolist(), leaking)


def merged_groups(*groupings: Integers) -> Integers:
    """Merge groupings: rows that share a group in any of them share one in the result.

    Args:
        groupings: each has for each row the number of its group, of shape (rows,).

    Returns:
        For each row the number of its group.
    """
    import numpy
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = []
    for grouping in groupings:
        _, leaders, group_of = numpy.unique(grouping, return_index=True, return_inverse=True)
        leader = leaders[group_of]
        rows = numpy.flatnonzero(leader != numpy.arange(len(grouping)))
        edges.append((rows, leader[rows]))
    start, end = map(numpy.concatenate, zip(*edges, strict=True))
    graph = coo_matrix((numpy.ones(len(start), numpy.int8), (start, end)), shape=(len(groupings[0]),) * 2)
    component: Integers = connected_components(graph, directed=False)[1]
    return component


def repeated(rows: Sequence[int], sources: Sequence[int], weights: Sequence[float], seed: int) -> list[int]:
    """Rows repeated by the weight of their source, in order: 2.5 is twice, and a third time for half of them."""
    if set(weights) == {1.0}:
        return list(rows)
    chooser = random.Random(seed)
    taken: list[int] = []
    for row in rows:
        weight = weights[sources[row]]
        whole = int(weight)
        taken += [row] * (whole + (chooser.random() < weight - whole))
    return taken
