"""Rows of about the same length go together, in an order that only seed and epoch decide."""

from __future__ import annotations

import random

from llmft_cli.training.sampling import LengthGroupedSampler

LENGTHS = [random.Random(number).randrange(5, 500) for number in range(800)]


def padding(order: list[int], batch_size: int = 8) -> int:
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(max(LENGTHS[row] for row in batch) - LENGTHS[row] for batch in batches for row in batch)


def test_batches_hold_rows_of_about_the_same_length() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 8, seed=1))
    assert sorted(order) == list(range(800))
    assert padding(order) < 0.1 * padding(random.Random(1).sample(order, 800))


def test_resuming_in_a_later_epoch_finds_the_same_order() -> None:
    through, resumed = (LengthGroupedSampler(LENGTHS, 8, seed=1) for _ in range(2))
    orders = []
    for epoch in range(3):
        through.set_epoch(epoch)
        orders.append(list(through))
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert list(LengthGroupedSampler(LENGTHS, 8, seed=2)) != orders[0]
