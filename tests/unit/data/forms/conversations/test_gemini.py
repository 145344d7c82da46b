"""Gemini's `contents`."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, FUNCTION, SYSTEM, USER, reason_of

from llmft_cli.data.forms.formats import Conversation, parse

CALL = {"functionCall": {"name": "f", "args": {"x": 1}}}
RESULT = {"functionResponse": {"name": "f", "response": {"r": 1}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]}
TOOL = {"role": "tool", "content": '{"r": 1}', "name": "f"}
QUESTION = {"role": "user", "parts": [{"text": "q"}]}
REPLY = {"role": "model", "parts": [{"text": "a"}]}


def model(*parts: Any) -> dict[str, Any]:
    return {"role": "model", "parts": list(parts)}


@pytest.mark.parametrize(
    ("contents", "messages"),
    [
        ([QUESTION, REPLY], [USER, ANSWER]),
        ([{"parts": {"text": "q"}}, model({"text": "a", "functionCall": None, "thoughtSignature": "x"})], [USER, ANSWER]),
        ([QUESTION, model(CALL), {"role": "user", "parts": [RESULT]}, REPLY], [USER, CALLS, TOOL, ANSWER]),
        ([QUESTION, model(CALL), {"role": "function", "parts": [RESULT]}, REPLY], [USER, CALLS, TOOL, ANSWER]),
        (
            [
                QUESTION,
                model({"text": "I look."}, CALL, CALL),
                {"role": "user", "parts": [RESULT, RESULT, {"text": "q"}]},
                REPLY,
            ],
            [USER, {**CALLS, "content": "I look.", "tool_calls": CALLS["tool_calls"] * 2}, TOOL, TOOL, USER, ANSWER],  # type: ignore[operator]
        ),
        ([QUESTION, model(CALL, {"text": "a"})], [USER, CALLS, ANSWER]),
        (
            [QUESTION, model({"text": "t", "thought": True}, {"text": "a"})],
            [USER, {**ANSWER, "reasoning_content": "t"}],
        ),
        (
            [QUESTION, model({"function_call": {"name": "f", "args": {"x": 1}, "id": "1"}})],
            [USER, {**CALLS, "tool_calls": [{"id": "1", "type": "function", "function": FUNCTION}]}],
        ),
    ],
)
def test_contents_become_messages(contents: list[Any], messages: list[Any]) -> None:
    assert parse({"contents": contents}) == ("messages", Conversation(messages))
    assert parse({"messages": contents}) == ("messages", Conversation(messages))
    assert parse({"talk": contents}, columns={"messages": "talk"}) == ("messages", Conversation(messages))


@pytest.mark.parametrize("key", ["systemInstruction", "system_instruction"])
@pytest.mark.parametrize("value", ["s", {"parts": [{"text": "s"}]}, {"role": "system", "parts": {"text": "s"}}])
def test_the_system_instruction_comes_first(key: str, value: Any) -> None:
    assert parse({"contents": [QUESTION, REPLY], key: value}) == ("messages", Conversation([SYSTEM, USER, ANSWER]))


@pytest.mark.parametrize("key", ["functionDeclarations", "function_declarations"])
def test_function_declarations_are_tools(key: str) -> None:
    functions = [{"name": "f"}, {"name": "g"}]
    expected = Conversation([USER, ANSWER], [{"type": "function", "function": function} for function in functions])
    row = {"contents": [QUESTION, REPLY], "tools": [{key: functions[:1]}, {key: functions[1:]}]}
    assert parse(row) == ("messages", expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            model({"inlineData": {"data": "AA"}}),
            "the row has a file, which a text model cannot learn from (contents[2].parts[1])",
        ),
        (model({"text": "a", "fileData": {}}), "contents[2].parts[1] has text, fileData at once"),
        (model({"text": None}), "contents[2].parts[1] is empty"),
        (model(), "contents[2].parts must be a list of parts, not an empty list"),
        (model("a"), "contents[2].parts[1] is text, not an object"),
        (model({"text": 7}), "contents[2].parts[1].text is a number, not text"),
        (model({"functionCall": "f"}), "contents[2].parts[1].functionCall is text, not an object"),
        ("a", "contents[2] is text, not an object"),
        ({"role": "critic", "parts": [{"text": "a"}]}, "contents[2] has the unknown role 'critic'"),
    ],
)
def test_parts_that_no_text_stands_for(content: Any, reason: str) -> None:
    assert reason_of({"contents": [QUESTION, content, REPLY]}) == reason
