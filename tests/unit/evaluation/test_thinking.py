"""Thinking before an answer: what of a text is the answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.evaluation.thinking import (
    begins_thinking,
    expected_without_thinking,
    without_begun_thinking,
    without_thinking,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "Paris"),
        ("  Paris\n", "  Paris\n"),
        ("", ""),
        ("<think>France, so Paris.</think>Paris", "Paris"),
        ("\n<think>\nFrance.\n</think>\n\nParis\n", "Paris"),
        ("<think></think>Paris", "Paris"),
        ("<think>one</think>\n<think>two</think> Paris", "Paris"),
        ("<think>France, so", ""),  # cut
        ("<think>one</think><think>two", ""),
        ("France, so Paris.\n</think>\nParis", "Paris"),  # the template has written <think>
        ("<think>a</think>The tag </think> ends it", "The tag </think> ends it"),
        ("Write <think> and </think> around it", "Write <think> and </think> around it"),
        ("Paris <think>is that right?</think>", "Paris <think>is that right?</think>"),
    ],
)
def test_the_answer_after_the_thinking(text: str, answer: str) -> None:
    assert without_thinking(text) == answer


@pytest.mark.parametrize(
    ("text", "cut", "answer"),
    [
        ("France, so Paris.</think> Paris", False, "Paris"),
        ("France, so", True, ""),
        ("Paris", False, "Paris"),  # it has answered without thinking
        ("France.</think> Paris is the", True, "Paris is the"),
    ],
)
def test_the_answer_to_a_prompt_that_ends_with_the_opening_tag(text: str, cut: bool, answer: str) -> None:
    assert without_begun_thinking(text, cut) == answer


def test_expected_answers_lose_their_thinking_but_not_everything() -> None:
    expected = ["<think>a</think>Paris", "Paris", "<think>only thinking</think>", ""]
    assert expected_without_thinking(expected) == ["Paris", "Paris", "<think>only thinking</think>", ""]


@given(st.text(st.sampled_from("a \n<>/"), max_size=6), st.text(st.sampled_from("ab c"), max_size=6))
def test_thinking_of_any_kind_goes_and_the_answer_stays(thought: str, answer: str) -> None:
    assert without_thinking(f"<think>{thought}</think>{answer}") == answer.strip()


def test_a_prompt_that_begins_the_thinking(tiny_tokenizer: Any) -> None:
    for text, begun in [
        ("a<think>\n", True),
        ("a<think>", True),
        ("a<think>\n\n</think>\n\n", False),
        ("a", False),
        ("", False),
    ]:
        assert begins_thinking(tiny_tokenizer, tiny_tokenizer.encode(text, add_special_tokens=False)) is begun
