"""Rows of prompt files: under which keys prompts and right answers are found, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.data.forms.formats import RowError, parse
from llmft_cli.data.forms.prompt_rows import parse_prompt

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
HUMAN = {"from": "human", "value": "q"}
GPT = {"from": "gpt", "value": "a"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "q"}, [USER]),
        ({"prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"question": "q"}, [USER]),
        ({"query": "q"}, [USER]),
        ({"input": "q"}, [USER]),
        ({"instruction": "q"}, [USER]),
        ({"instruction": "q", "input": "more"}, [{"role": "user", "content": "q\n\nmore"}]),
        ({"question": "q", "context": "c"}, [{"role": "user", "content": "c\n\nq"}]),
        ({"prompt": "q", "system": "s"}, [SYSTEM, USER]),
        ({"messages": [USER], "system": "s"}, [SYSTEM, USER]),
        ({"messages": [SYSTEM, USER, ANSWER, USER]}, [SYSTEM, USER, ANSWER, USER]),
        ({"messages": [{**USER, "weight": "any"}], "prompt": "p"}, [USER]),
        ({"messages": [HUMAN]}, [USER]),
        ({"conversations": [HUMAN, GPT, HUMAN]}, [USER, ANSWER, USER]),
        ({"question": None, "query": "q"}, [USER]),
        ({"prompt": "q", "input_ids": [1]}, [USER]),
        ({"prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"}, [USER]),
        ({"prompt": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] "}, [SYSTEM, USER]),
        ({"instruction": "### Human: q\n### Assistant:"}, [USER]),
    ],
)
def test_prompts_under_their_common_names(row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    found = parse_prompt({**row, "expected": "x"})
    assert (found.messages, found.expected) == (messages, ["x"])
    assert parse_prompt(row).expected is None


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]], "system": "s"},
        {"instruction": "q", "context": "c", "response": "a"},
        {"prompt": "q", "context": "c", "completion": "a"},
        {"prompt": "q", "context": "c", "response": "a"},
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
        {"question": "q", "answer": "a"},
        {"question": "q", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}},
        {"query": "q", "response": "a"},
        {"prompt": "<|im_start|>user\nq<|im_end|>\n", "completion": "a"},
        {"prompt": "[INST] q [/INST]", "response": "a"},
        {"input": "q", "output": "a"},
        {"messages": [SYSTEM, USER, ANSWER]},
        {"conversations": [HUMAN, GPT]},
        {"dialog": ["q", "a"]},
        {"conversation": [{"input": "q", "output": "a"}], "system": "s"},
        {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
        [USER, ANSWER],
    ],
)
def test_a_training_row_is_a_prompt_with_its_own_tokens_and_answer(row: dict[str, Any]) -> None:
    example = parse(row)[1]
    found = parse_prompt(row)
    assert found.messages == example.messages[:-1]  # type: ignore[union-attr]
    assert found.expected is not None
    assert found.expected[0] == "a"
    assert found.choices == []


@pytest.mark.parametrize("key", ["expected", "answer", "completion", "output", "target", "label", "response", "reference"])
def test_answers_under_their_common_names(key: str) -> None:
    assert parse_prompt({"prompt": "q", key: "x"}).expected == ["x"]
    assert parse_prompt({"prompt": "q", key: None}).expected is None


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("x", ["x"]),
        ("", [""]),
        (42, ["42"]),
        (-5, ["-5"]),
        (3.5, ["3.5"]),
        (3.0, ["3", "3.0"]),
        (-0.25, ["-0.25"]),
        (1e300, ["1e+300"]),
        (True, ["true"]),
        (False, ["false"]),
        (["Paris", "paris", "Paris"], ["Paris", "paris"]),
        ([1, "one", True], ["1", "one", "true"]),
        ({"text": ["a", "b"], "answer_start": [3, 9]}, ["a", "b"]),
        ([{"role": "assistant", "content": "x"}], ["x"]),
    ],
)
def test_an_answer_may_be_a_number_or_true_or_false_or_a_list_of_right_ones(value: Any, texts: list[str]) -> None:
    assert parse_prompt({"prompt": "q", "expected": value}).expected == texts


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("q", "a prompt must be an object, not text"),
        ({}, "the object is empty"),
        ({"ask": "q", "gold": "a"}, "there is no prompt among the keys 'ask', 'gold'"),
        ({"prompt": None, "expected": "a"}, "prompt is null, and there is no other prompt"),
        ({"prompt": 5}, "prompt is a number, not text"),
        ({"prompt": " "}, "message 1 (user) is empty"),
        ({"prompt": "\ud800"}, "prompt has a lone surrogate (\\ud800)"),
        ({"messages": None, "prompt": "q"}, "messages must be a list of messages, not null"),
        ({"messages": [SYSTEM]}, "message 1 is from system; a prompt ends with the user's"),
        ({"messages": [ANSWER]}, "message 1 is from assistant; a prompt ends with the user's"),
        ({"prompt": "q", "tools": [{"name": "f"}]}, "the prompt has tools, which eval does not support"),
        ({"prompt": "q", "expected": []}, "expected is an empty list, with no right answer"),
        ({"prompt": "q", "expected": float("nan")}, "expected is nan, which is no answer"),
        ({"prompt": "q", "expected": "\ud800"}, "expected has a lone surrogate (\\ud800)"),
        (
            {"prompt": "q", "expected": ["x", None]},
            "expected[2] is null: an answer is a text, a number, true/false, or a list of them",
        ),
        (
            {"prompt": "q", "label": {"name": "x"}},
            "label is an object: an answer is a text, a number, true/false, or a list of them",
        ),
        (
            {"prompt": "q", "completion": "a", "label": True},
            "both completion and label may be the expected answer: name the right one expected",
        ),
        (
            {"messages": [USER, ANSWER], "answer": "b"},
            "both answer and the last message may be the expected answer: name the right one expected",
        ),
    ],
)
def test_what_is_no_prompt_is_refused_with_the_reason(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_prompt(row)
    assert str(caught.value) == reason


def test_what_is_left_aside_is_told() -> None:
    found = parse_prompt({"prompt": "q", "question": "other", "expected": "x", "answer": "y", "label": 1})
    assert (found.messages, found.expected) == ([USER], ["x"])
    assert found.choices == [
        "prompt is used as the prompt, and not question",
        "expected is used as the answer, and not answer",
        "expected is used as the answer, and not label",
    ]
    talk = parse_prompt({"messages": [USER, ANSWER], "expected": "x"})
    assert (talk.messages, talk.expected) == ([USER], ["x"])
    assert talk.choices == ["expected is used as the answer, and not the last message"]
    # Two names for the same answer are no choice.
    assert parse_prompt({"prompt": "q", "answer": "x", "target": "x"}).choices == []


def test_turns_are_merged_as_in_training_rows() -> None:
    turns = [USER, USER, ANSWER, ANSWER, USER]
    assert parse_prompt({"messages": turns}).messages == turns
    joined = [{**USER, "content": "q\n\nq"}, {**ANSWER, "content": "a\n\na"}, USER]
    assert parse_prompt({"messages": turns}, merge_turns=True).messages == joined
    assert parse_prompt({"messages": [*turns, ANSWER]}, merge_turns=True).messages == joined
