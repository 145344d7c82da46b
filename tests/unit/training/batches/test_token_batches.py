"""Batches filled by tokens: their number and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.base.errors import ConfigError
from llmft_cli.training.batches.token_batches import (
    TokenBatch,
    largest_batch,
    padded_length,
    sequences_that_fill,
    token_batches,
)

MANY = 10**6
LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("length", "padded"),
    [(1, 8), (8, 8), (57, 64), (64, 64), (65, 72), (128, 128), (129, 144), (1000, 1024), (1025, 1152), (2048, 2048)],
)
def test_lengths_are_rounded_to_eight_of_each_doubling(length: int, padded: int) -> None:
    assert padded_length(length, MANY) == padded


@given(st.integers(1, 10**5))
def test_rounding_adds_less_than_an_eighth_and_keeps_what_is_rounded(length: int) -> None:
    padded = padded_length(length, MANY)
    assert length <= padded < max(length + 8, 1.125 * length)
    assert padded_length(padded, MANY) == padded
    assert padded_length(length, length) == length


def test_batches_go_from_the_longest_sequence_to_the_shortest() -> None:
    batches = token_batches([16, 100, 8, 64, 60, 99, 98, 16, 64], 200)
    assert batches == [TokenBatch(0, 2, 100), TokenBatch(2, 2, 100), TokenBatch(4, 3, 64), TokenBatch(7, 2, 16)]
    assert [batch.tokens for batch in batches] == [200, 200, 192, 32]


def test_packed_sequences_count_for_the_longest() -> None:
    """100 is not rounded to 104, of which only three would fit."""
    assert [batch.sequences for batch in token_batches([100, 97, 99, 98, 100], 400)] == [4, 1]


@given(LENGTHS, st.integers(0, 5000))
def test_every_sequence_is_in_a_batch_within_the_tokens(lengths: list[int], more: int) -> None:
    tokens = max(lengths) + more
    batches = token_batches(lengths, tokens)
    assert all(batch.tokens <= tokens for batch in batches)
    assert [batch.start for batch in batches[1:]] == [batch.start + batch.sequences for batch in batches[:-1]]
    assert batches[0].start == 0
    assert sum(batch.sequences for batch in batches) == len(lengths)
    assert all(batch.tokens + batch.length > tokens for batch in batches[:-1])
    assert largest_batch(lengths, tokens).tokens == max(batch.tokens for batch in batches)


def test_the_largest_batch_may_be_one_of_shorter_sequences() -> None:
    assert largest_batch([150, 64, 64, 64, 64], 200) == TokenBatch(1, 3, 64)
    assert largest_batch([100, 100, 50, 50, 50, 50], 200).length == 100


def test_the_longest_sequence_must_fit() -> None:
    assert sequences_that_fill(8192, 2048) == 4
    for refused in (lambda: sequences_that_fill(99, 100), lambda: token_batches([8, 100], 99)):
        with pytest.raises(ConfigError) as raised:
            refused()
        assert raised.value.message == "--tokens-per-batch 99 is less than the longest sequence (100 tokens)"
        assert raised.value.hint == "use --tokens-per-batch 100 or more, or prepare the data with a smaller --max-seq-length"
