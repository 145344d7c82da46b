"""Sequences of similar length are batched together, in an order that depends only on seed and epoch."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.training.batches.sampling import LengthGroupedSampler, ShuffledSampler, TokenBatchSampler
from llmft_cli.training.batches.token_batches import padded_length

LENGTHS = [random.Random(number).randrange(5, 500) for number in range(800)]


class OfLengths:
    """All that samplers need of sequences; they are told the epoch."""

    def __init__(self, lengths: list[int] = LENGTHS) -> None:
        self.lengths = numpy.array(lengths)
        self.epoch: int | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> tuple[int, int | None]:
        return number, self.epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def by_length(seed: int) -> LengthGroupedSampler:
    return LengthGroupedSampler(OfLengths(), 8, seed)  # type: ignore[arg-type]


def by_tokens(seed: int, tokens: int = 2000, lengths: list[int] = LENGTHS) -> TokenBatchSampler:
    return TokenBatchSampler(OfLengths(lengths), tokens, seed)  # type: ignore[arg-type]


def padding(order: list[int], batch_size: int = 8) -> int:
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(max(LENGTHS[row] for row in batch) - LENGTHS[row] for batch in batches for row in batch)


def test_batches_hold_rows_of_about_the_same_length() -> None:
    order = list(by_length(1))
    assert sorted(order) == list(range(800))
    assert padding(order) < 0.1 * padding(random.Random(1).sample(order, 800))


def test_resuming_in_a_later_epoch_finds_the_same_order() -> None:
    through, resumed = (by_length(1) for _ in range(2))
    orders = []
    for epoch in range(3):
        through.set_epoch(epoch)
        orders.append(list(through))
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert list(by_length(2)) != orders[0]


# -- batches of tokens


def batches_of(sampler: TokenBatchSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=200), st.integers(0, 5000), st.integers(0, 2**32 - 1))
def test_each_epoch_has_every_sequence_once_in_as_many_batches_of_so_many_tokens(
    lengths: list[int], more: int, seed: int
) -> None:
    tokens, longest = max(lengths) + more, max(lengths)
    sampler = by_tokens(seed, tokens, lengths)
    for epoch in range(3):
        batches = batches_of(sampler, epoch)
        assert len(batches) == len(sampler)
        assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
        assert all(len(batch) * max(padded_length(lengths[one], longest) for one in batch) <= tokens for batch in batches)


def test_sequences_meet_others_of_about_their_length_in_each_epoch() -> None:
    sampler = by_tokens(1)
    first, second = (batches_of(sampler, epoch) for epoch in (0, 1))
    assert not {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second if len(batch) > 4}
    assert [max(LENGTHS[one] for one in batch) for batch in first] != sorted(
        max(LENGTHS[one] for one in batch) for batch in first
    )
    padded = sum(len(batch) * max(LENGTHS[one] for one in batch) for batch in first)
    assert sum(LENGTHS) > 0.9 * padded


def test_the_batches_of_a_later_epoch_are_found_again() -> None:
    through, resumed, other = (by_tokens(seed) for seed in (1, 1, 2))
    orders = [batches_of(through, epoch) for epoch in range(3)]
    assert batches_of(resumed, 2) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert batches_of(other, 0) != orders[0]


# -- the epoch


def test_the_shuffled_order_is_that_of_trainers_own_sampler() -> None:
    """So that a training on packed rows is, bit for bit, what it was when Trainer shuffled them."""
    loader = torch.utils.data.DataLoader(range(800), shuffle=True, collate_fn=list)  # type: ignore[arg-type]
    torch.manual_seed(7)
    as_trainer_has_it = DataLoaderConfiguration(use_seedable_sampler=True)
    prepared = Accelerator(cpu=True, dataloader_config=as_trainer_has_it).prepare(loader)
    ours = ShuffledSampler(OfLengths(), 7)  # type: ignore[arg-type]
    for epoch in (0, 1, 5):
        prepared.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert [number for batch in prepared for number in batch] == list(ours)


@pytest.mark.parametrize("kind", ["shuffled", "by length", "by tokens"])
def test_sequences_are_told_the_epoch_also_where_batches_are_skipped(kind: str) -> None:
    """accelerate tells the dataset only as long as it skips none, so a resumed training had the first epoch's sequences."""
    sequences: Any = OfLengths()
    options: dict[str, Any] = {
        "shuffled": {"sampler": ShuffledSampler(sequences, 1), "batch_size": 4},
        "by length": {"sampler": LengthGroupedSampler(sequences, 8, 1), "batch_size": 4},
        "by tokens": {"batch_sampler": TokenBatchSampler(sequences, 2000, 1)},
    }[kind]
    loader = Accelerator(cpu=True).prepare(torch.utils.data.DataLoader(sequences, collate_fn=list, **options))
    loader.set_epoch(2)
    expected = list(loader)
    assert {epoch for batch in expected for _, epoch in batch} == {2}
    for skipped in (0, 5):
        sequences.set_epoch(0)
        rest = skip_first_batches(loader, skipped) if skipped else loader
        rest.set_epoch(2)
        assert list(rest) == expected[skipped:]
