"""The order of roles, sharegpt speakers, and which answers are supervised."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, CALL, CALLS, FUNCTION, RESULT, SYSTEM, USER, reason_of, talk

from llmft_cli.data.forms.formats import Conversation, parse


@pytest.mark.parametrize(
    "messages",
    [
        [USER, CALLS],
        [USER, CALLS, RESULT, ANSWER],
        [USER, {**CALLS, "tool_calls": [CALL, CALL]}, RESULT, RESULT, ANSWER, USER, ANSWER],
        [USER, {**CALLS, "tool_calls": [CALL, CALL]}, RESULT, ANSWER],
        [SYSTEM, USER, CALLS, RESULT, CALLS, RESULT, ANSWER],
        [USER, {**CALLS, "content": "I look."}, {**RESULT, "content": ""}, ANSWER],
        [USER, ANSWER, USER, CALLS],
    ],
)
def test_conversations_with_tools_come_through_unchanged(messages: list[Any]) -> None:
    assert parse(talk(*messages)) == ("messages", Conversation(messages))


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"role": "developer", "content": "s"}, SYSTEM),
        ({"role": "system", "content": [{"type": "text", "text": "s", "url": None}], "name": "n"}, SYSTEM),
    ],
)
def test_system_messages(turn: Any, expected: Any) -> None:
    assert parse(talk(turn, USER, ANSWER)) == ("messages", Conversation([expected, USER, ANSWER]))


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        ((("human", "q"), ("function_call", '{"name": "f", "arguments": {"x": 1}}')), [USER, CALLS]),
        ((("user", "q"), ("tool_call", {"name": "f", "arguments": '{"x": 1}'})), [USER, CALLS]),
        ((("human", "q"), ("tool_call", '[{"name": "f", "arguments": {"x": 1}}]')), [USER, CALLS]),
        ((("human", "q"), ("tool_call", [{"function": FUNCTION}])), [USER, CALLS]),
        *(
            (
                (
                    ("system", "s"),
                    ("human", "q"),
                    ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
                    (result, "r"),
                    (speaker, "a"),
                ),
                [SYSTEM, USER, CALLS, {"role": "tool", "content": "r"}, ANSWER],
            )
            for result, speaker in [
                ("observation", "gpt"),
                ("function_response", "chatgpt"),
                ("tool", "bing"),
                ("tool_response", "bard"),
                ("observation", "model"),
                ("observation", "assistant"),
                ("observation", "bot"),
            ]
        ),
        (
            (
                ("human", "q"),
                ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
                ("observation", {"t": 1}),
                ("gpt", "a"),
            ),
            [USER, CALLS, {"role": "tool", "content": '{"t": 1}'}, ANSWER],
        ),
    ],
)
def test_sharegpt_speakers(speakers: Any, expected: list[dict[str, Any]]) -> None:
    anonymous = {**CALLS, "tool_calls": [{"type": "function", "function": FUNCTION}]}
    messages = [anonymous if message is CALLS else message for message in expected]
    row = {"conversations": [{"from": speaker, "value": value} for speaker, value in speakers]}
    assert parse(row) == ("sharegpt", Conversation(messages))


@pytest.mark.parametrize(
    ("marks", "trained"),
    [
        ([{}, {}, {}, {}], None),
        ([{"weight": 0}, {"name": "n"}, {"train": False}, {"weight": None}], None),
        ([{}, {"weight": 0}, {}, {"weight": 1}], (False, False, False, True)),
        ([{}, {"weight": 0.0}, {}, {}], (False, False, False, True)),
        ([{}, {"weight": 1.0}, {}, {}], (False, True, False, True)),
        ([{}, {"train": True}, {}, {"train": False}], (False, True, False, False)),
        ([{}, {"training": False}, {}, {}], (False, False, False, True)),
        ([{}, {"training": False, "weight": 0, "train": None}, {}, {}], (False, False, False, True)),
    ],
)
def test_marks_of_what_is_learned(marks: list[dict[str, Any]], trained: Any) -> None:
    turns = [USER, ANSWER, USER, ANSWER]
    row = talk(*({**turn, **mark} for turn, mark in zip(turns, marks, strict=True)))
    assert parse(row) == ("messages", Conversation(turns, None, trained))
    shared = [{"from": turn["role"], "value": turn["content"], **mark} for turn, mark in zip(turns, marks, strict=True)]
    beside = trained and (False, *trained)
    assert parse({"conversations": shared, "system": "s"}) == ("sharegpt", Conversation([SYSTEM, *turns], None, beside))


def test_a_call_may_be_marked() -> None:
    row = talk(USER, {**CALLS, "weight": 0}, RESULT, ANSWER)
    assert parse(row) == ("messages", Conversation([USER, CALLS, RESULT, ANSWER], None, (False, False, False, True)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk(RESULT, ANSWER), "message 1 is from tool, with no call before it"),
        (talk(USER, RESULT, ANSWER), "message 2 is from tool, with no call before it"),
        (talk(USER, ANSWER, USER, RESULT, ANSWER), "message 4 is from tool, with no call before it"),
        (talk(SYSTEM, RESULT, ANSWER), "message 2 is from tool, with no call before it"),
        (talk(USER, CALLS, RESULT, RESULT, ANSWER), "message 4 is from tool, but every tool call already has a result"),
        (talk(USER, CALLS, RESULT), "the last message is from tool, with no answer to learn from"),
        (talk(USER, CALLS, RESULT, {**ANSWER, "content": "\n"}), "message 4 (assistant) is empty"),
        (talk(USER, {**ANSWER, "role": "tool"}), "there is no assistant turn to learn from"),
    ],
)
def test_what_no_template_can_mean(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row) == reason


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"from": "function_call"}, "conversations[2].value is missing"),
        (
            {"from": "function_call", "value": "f(1)"},
            "conversations[2].value is not valid JSON: Expecting value at character 1",
        ),
        ({"from": "tool_call", "value": "7"}, "conversations[2].value is a number, not an object"),
        ({"from": "tool_call", "value": []}, "conversations[2].value has no calls"),
        (
            {"from": "tool_call", "value": '[{"name": "f"}, {"arguments": {}}]'},
            "conversations[2].value[2] has no function name",
        ),
        (
            {"from": "tool_call", "value": '{"name": "f", "arguments": "x"}'},
            "conversations[2].value.arguments is not valid JSON: Expecting value at character 1",
        ),
        ({"from": "observation", "value": "x"}, "message 2 is from tool, with no call before it"),
        ({"from": "observation"}, "conversations[2].value is missing"),
        ({"from": ["gpt"], "value": "x"}, "conversations[2].from is a list, not text"),
        ({"from": "gpt", "value": "\udc00"}, "conversations[2].value has a lone surrogate (\\udc00)"),
    ],
)
def test_malformed_sharegpt_turns(turn: Any, reason: str) -> None:
    assert reason_of({"conversations": [{"from": "human", "value": "q"}, turn, {"from": "gpt", "value": "a"}]}) == reason


NOT_WHOLE = "not true, false, 0 or 1: an answer is learned whole or not at all"


@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        ({"weight": 0.5}, f"messages[2].weight is 0.5, {NOT_WHOLE}"),
        ({"training": []}, f"messages[2].training is an empty list, {NOT_WHOLE}"),
        ({"weight": 1, "train": False}, "messages[2] is both included in and excluded from training (weight, train)"),
        ({"weight": 0}, "every answer is excluded from training"),
    ],
)
def test_malformed_marks(marks: dict[str, Any], reason: str) -> None:
    assert reason_of(talk(USER, {**ANSWER, **marks})) == reason
