"""How much of a model's positions a prompt leaves for its answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.models.limits import Limits
from llmft_cli.serving.room import longest_conversation, new_tokens_for, prompt_batches
from llmft_cli.settings.config import resolve


@pytest.mark.parametrize(
    ("limits", "trained", "longest"),
    [
        (Limits("m", 1024, True, None), 4096, 1024),
        (Limits("m", 1024, False, None), 512, 1024),
        (Limits("m", 1024, False, None), 4096, 4096),  # it was trained on longer rows than it was made for
        (Limits("m", None, False, None), 512, None),
    ],
)
def test_the_longest_conversation(limits: Limits, trained: int, longest: int | None) -> None:
    assert longest_conversation(limits, resolve({"max_seq_length": trained})) == longest


@pytest.mark.parametrize(
    ("prompt", "longest", "tokens"), [(10, None, 50), (10, 100, 50), (60, 100, 40), (99, 100, 1), (100, 100, 0), (150, 100, 0)]
)
def test_an_answer_is_cut_at_the_end_of_the_positions(prompt: int, longest: int | None, tokens: int) -> None:
    assert new_tokens_for(prompt, longest, 50) == tokens


@given(lengths=st.lists(st.integers(1, 99), max_size=30), batch_size=st.integers(1, 5), most=st.integers(1, 60))
def test_every_prompt_is_answered_once_with_as_many_tokens_as_alone(lengths: list[int], batch_size: int, most: int) -> None:
    batches = list(prompt_batches(lengths, batch_size, 100, most))
    assert sorted(index for batch in batches for index in batch.prompts) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.prompts) <= batch_size
        assert {new_tokens_for(lengths[index], 100, most) for index in batch.prompts} == {batch.new_tokens}
        assert max(lengths[index] for index in batch.prompts) + batch.new_tokens <= 100


def test_prompts_of_similar_length_share_a_batch() -> None:
    batches = list(prompt_batches([30, 10, 95, 20, 40], 2, 100, 10))
    assert batches == [([1, 3], 10), ([0, 4], 10), ([2], 5)]
