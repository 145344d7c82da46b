"""`--merge-turns`, and calls in neighbouring turns."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, CALL, CALLS, FUNCTION, RESULT, SYSTEM, USER, talk

from llmft_cli.data.forms.formats import Conversation, RowError, parse

OTHER_CALL = {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}}


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "joined"),
    [
        ([USER, ANSWER], [USER, ANSWER]),
        ([USER, said("user", "r"), ANSWER], [said("user", "q\n\nr"), ANSWER]),
        ([USER, USER, USER, ANSWER], [said("user", "q\n\nq\n\nq"), ANSWER]),
        ([USER, ANSWER, said("assistant", "b")], [USER, said("assistant", "a\n\nb")]),
        ([SYSTEM, said("system", "t"), USER, ANSWER], [said("system", "s\n\nt"), USER, ANSWER]),
        ([said("system", ""), SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER]),
        ([USER, ANSWER, USER, ANSWER], [USER, ANSWER, USER, ANSWER]),
        ([USER, ANSWER, CALLS, RESULT, ANSWER], [USER, ANSWER, CALLS, RESULT, ANSWER]),
        ([USER, CALLS, ANSWER], [USER, CALLS, ANSWER]),
        (
            [USER, {**CALLS, "tool_calls": [CALL, CALL]}, RESULT, RESULT, ANSWER, ANSWER],
            [USER, {**CALLS, "tool_calls": [CALL, CALL]}, RESULT, RESULT, said("assistant", "a\n\na")],
        ),
        (
            [USER, {**ANSWER, "thinking": "t"}, ANSWER, {**ANSWER, "thinking": "u"}],
            [USER, {**said("assistant", "a\n\na"), "thinking": "t"}, {**ANSWER, "thinking": "u"}],
        ),
    ],
)
def test_neighbours_of_the_same_role_are_joined_by_a_blank_line(messages: list[Any], joined: list[Any]) -> None:
    assert parse(talk(*messages)) == ("messages", Conversation(messages))
    assert parse(talk(*messages), merge_turns=True) == ("messages", Conversation(joined))


def test_what_is_learned_stays_with_the_joined_messages() -> None:
    row = talk(USER, USER, {**ANSWER, "weight": 0}, {**ANSWER, "weight": 0}, USER, ANSWER)
    expected = [said("user", "q\n\nq"), said("assistant", "a\n\na"), USER, ANSWER]
    assert parse(row, merge_turns=True) == ("messages", Conversation(expected, None, (False, False, False, True)))
    row = talk(USER, {**ANSWER, "weight": 0}, ANSWER)
    assert parse(row)[1] == Conversation([USER, ANSWER, ANSWER], None, (False, False, True))
    reason = r"^messages 2 and 3 \(assistant\) are to be joined, but only one of them is learned$"
    with pytest.raises(RowError, match=reason):
        parse(row, merge_turns=True)
    with pytest.raises(RowError, match=reason):
        parse({"prompt": [USER, ANSWER], "completion": "a"}, merge_turns=True)


def test_documents_and_rows_of_another_form_are_not_affected() -> None:
    assert parse({"text": "t"}, merge_turns=True) == parse({"text": "t"})
    assert parse({"prompt": "q", "completion": "a"}, merge_turns=True) == parse({"prompt": "q", "completion": "a"})


@pytest.mark.parametrize(
    ("messages", "joined"),
    [
        (
            [USER, CALLS, {**CALLS, "tool_calls": [OTHER_CALL]}, RESULT, RESULT, ANSWER],
            [USER, {**CALLS, "tool_calls": [CALL, OTHER_CALL]}, RESULT, RESULT, ANSWER],
        ),
        (
            [USER, {**CALLS, "content": "I look."}, {**CALLS, "tool_calls": [OTHER_CALL]}, RESULT, ANSWER],
            [USER, {**CALLS, "content": "I look.", "tool_calls": [CALL, OTHER_CALL]}, RESULT, ANSWER],
        ),
        # Joined, the second text would stand before the first call.
        ([USER, CALLS, {**CALLS, "content": "b"}, RESULT, ANSWER], [USER, CALLS, {**CALLS, "content": "b"}, RESULT, ANSWER]),
        ([USER, CALLS, RESULT, CALLS, RESULT, ANSWER], [USER, CALLS, RESULT, CALLS, RESULT, ANSWER]),
    ],
)
def test_calls_in_neighbouring_turns_become_one_message_with_parallel_calls(messages: list[Any], joined: list[Any]) -> None:
    assert parse(talk(*messages)) == ("messages", Conversation(joined))


def test_sharegpt_turns_with_a_call_each_become_parallel_calls() -> None:
    """Two function_call turns and then two observations were refused: "message 3 is from assistant; expected tool"."""
    speakers = [
        ("human", "q"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("function_call", '{"name": "g", "arguments": "{}"}'),
        ("observation", "r"),
        ("observation", "s"),
        ("gpt", "a"),
    ]
    calls = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "g", "arguments": {}}}]
    expected = [USER, {**CALLS, "tool_calls": calls}, said("tool", "r"), said("tool", "s"), ANSWER]
    row: dict[str, Any] = {"conversations": [{"from": speaker, "value": value} for speaker, value in speakers]}
    assert parse(row) == ("sharegpt", Conversation(expected))
    row["conversations"][1]["weight"] = 0
    apart = [USER, {**CALLS, "tool_calls": calls[:1]}, {**CALLS, "tool_calls": calls[1:]}, *expected[2:]]
    assert parse(row) == ("sharegpt", Conversation(apart, None, (False, False, True, False, False, True)))
