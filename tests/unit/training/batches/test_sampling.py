"""Rows of similar length are batched together, in an order that depends only on seed and epoch."""

from __future__ import annotations

import random

import torch
from accelerate import Accelerator, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.training.batches.sampling import LengthGroupedSampler, TokenBatchSampler
from llmft_cli.training.batches.token_batches import padded_length

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


# -- batches of tokens


def batches_of(sampler: TokenBatchSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=200), st.integers(0, 5000), st.integers(0, 2**32 - 1))
def test_each_epoch_has_every_sequence_once_in_as_many_batches_of_so_many_tokens(
    lengths: list[int], more: int, seed: int
) -> None:
    tokens, longest = max(lengths) + more, max(lengths)
    sampler = TokenBatchSampler(lengths, tokens, seed)
    for epoch in range(3):
        batches = batches_of(sampler, epoch)
        assert len(batches) == len(sampler)
        assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
        assert all(len(batch) * max(padded_length(lengths[one], longest) for one in batch) <= tokens for batch in batches)


def test_sequences_meet_others_of_about_their_length_in_each_epoch() -> None:
    sampler = TokenBatchSampler(LENGTHS, 2000, seed=1)
    first, second = (batches_of(sampler, epoch) for epoch in (0, 1))
    assert not {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second if len(batch) > 4}
    assert [max(LENGTHS[one] for one in batch) for batch in first] != sorted(
        max(LENGTHS[one] for one in batch) for batch in first
    )
    padded = sum(len(batch) * max(LENGTHS[one] for one in batch) for batch in first)
    assert sum(LENGTHS) > 0.9 * padded


def test_the_batches_of_a_later_epoch_are_found_again() -> None:
    through, resumed, other = (TokenBatchSampler(LENGTHS, 2000, seed) for seed in (1, 1, 2))
    orders = [batches_of(through, epoch) for epoch in range(3)]
    assert batches_of(resumed, 2) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert batches_of(other, 0) != orders[0]


def test_accelerate_tells_the_epoch_also_where_it_skips_batches() -> None:
    accelerator = Accelerator(cpu=True)
    sampler = TokenBatchSampler(LENGTHS, 2000, seed=1)
    expected = batches_of(TokenBatchSampler(LENGTHS, 2000, seed=1), 2)
    loader = accelerator.prepare(torch.utils.data.DataLoader(range(800), batch_sampler=sampler, collate_fn=list))
    assert len(loader) == len(sampler)
    for skipped in (0, 5):
        sampler.set_epoch(0)
        rest = skip_first_batches(loader, skipped) if skipped else loader
        rest.set_epoch(2)
        assert list(rest) == expected[skipped:]
