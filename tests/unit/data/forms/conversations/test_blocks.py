"""Anthropic's content blocks."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, CALL, SYSTEM, USER, reason_of, talk

from llmft_cli.data.forms.formats import Conversation, parse

TOOL_USE = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "r"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "1"}
THINKING = {"type": "thinking", "thinking": "t", "signature": "x"}


def text(content: str, **others: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **others}


def turn(role: str, *blocks: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": list(blocks), **others}


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        ([turn("assistant", TOOL_USE), turn("user", TOOL_RESULT)], [CALLS, RESULT]),
        (
            [turn("assistant", text("I "), text("look."), TOOL_USE), turn("user", TOOL_RESULT, text("And?"))],
            [{**CALLS, "content": "I look."}, RESULT, {"role": "user", "content": "And?"}],
        ),
        (
            [turn("assistant", THINKING, text("b"), TOOL_USE, TOOL_USE), turn("user", TOOL_RESULT, TOOL_RESULT)],
            [{**CALLS, "content": "b", "reasoning_content": "t", "tool_calls": [CALL, CALL]}, RESULT, RESULT],
        ),
        # Joined, the text would stand before the call.
        ([turn("assistant", TOOL_USE, text("b")), USER], [CALLS, {"role": "assistant", "content": "b"}, USER]),
        (
            [turn("assistant", TOOL_USE), turn("user", text("So?"), {**TOOL_RESULT, "is_error": False})],
            [CALLS, {"role": "user", "content": "So?"}, RESULT],
        ),
        (
            [turn("assistant", TOOL_USE), turn("user", {**TOOL_RESULT, "content": [text("r"), text("s")]})],
            [CALLS, {**RESULT, "content": "rs"}],
        ),
        ([turn("assistant", TOOL_USE), turn("user", {**TOOL_RESULT, "content": None})], [CALLS, {**RESULT, "content": ""}]),
        (
            [turn("assistant", THINKING, {**THINKING, "thinking": [text("u")]}, text("b")), USER],
            [{"role": "assistant", "content": "b", "reasoning_content": "t\n\nu"}, USER],
        ),
        (
            [turn("assistant", {"type": "output_text", "text": "b"}), turn("user", {"type": "input_text", "text": "q"})],
            [{"role": "assistant", "content": "b"}, USER],
        ),
    ],
)
def test_blocks_become_messages(turns: list[Any], messages: list[Any]) -> None:
    row = talk(turn("user", text("q", cache_control={"type": "ephemeral"})), *turns, turn("assistant", text("a")))
    assert parse(row) == ("messages", Conversation([USER, *messages, ANSWER]))
    assert parse({"prompt": row["messages"], "completion": "b"})[0] == "prompt-completion"


def test_a_whole_row_of_anthropic() -> None:
    schema = {"name": "f", "description": "F.", "input_schema": {"type": "object"}}
    row = talk(USER, turn("assistant", TOOL_USE), turn("user", TOOL_RESULT), ANSWER, system=[text("s")], tools=[schema])
    tools = [{"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}}}]
    assert parse(row) == ("messages", Conversation([SYSTEM, USER, CALLS, RESULT, ANSWER], tools))


def test_marks_stay_with_their_message() -> None:
    row = talk(USER, turn("assistant", TOOL_USE, weight=0), turn("user", TOOL_RESULT, text("q")), ANSWER)
    trained = (False, False, False, False, True)
    assert parse(row) == ("messages", Conversation([USER, CALLS, RESULT, USER, ANSWER], None, trained))


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (
            [turn("assistant", TOOL_USE), turn("user", TOOL_RESULT, {"type": "image", "source": {}})],
            "the row has an image, which a text model cannot learn from (messages[3].content[2])",
        ),
        (
            [turn("assistant", {"type": "redacted_thinking", "data": "x"}, TOOL_USE)],
            "messages[2].content[1] has the type 'redacted_thinking'; only text, tool and thinking blocks are supported",
        ),
        (
            [turn("assistant", TOOL_USE), turn("user", {**TOOL_RESULT, "content": [{"type": "image"}]})],
            "the row has an image, which a text model cannot learn from (messages[3].content[1].content[1])",
        ),
        ([turn("assistant", TOOL_USE, "x")], "messages[2].content[2] is text, not an object"),
        ([turn("assistant", TOOL_RESULT)], "messages[2].content[1] is a tool result, but the message is from assistant"),
        ([turn("user", TOOL_USE)], "messages[2] is from user and calls tools, but only the assistant can"),
        ([turn("assistant", {"type": "tool_use", "id": "1"})], "messages[2].tool_calls[1] has no function name"),
        ([turn("assistant", {**THINKING, "thinking": None})], "messages[2].content[1].thinking is null, not text"),
    ],
)
def test_blocks_that_no_text_stands_for(turns: list[Any], reason: str) -> None:
    assert reason_of(talk(USER, *turns, ANSWER)) == reason


def test_a_block_whose_type_is_no_text_is_no_block() -> None:
    """It ended in a TypeError, as a list has no hash."""
    assert reason_of(talk(turn("user", {"type": ["text"], "text": "q"}), ANSWER)) == (
        "messages[1].content[1] has the type a list; only 'text' is supported"
    )


def test_a_turn_of_llama_factory() -> None:
    """Reasoning and calls are blocks of their own, with texts under `value`; 50 rows of a public file were refused."""
    blocks = [{"type": "reasoning", "value": "t"}, {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]
    said = {"type": "text", "value": "a"}
    turns = [
        turn("user", {"type": "text", "value": "q"}),
        turn("assistant", *blocks),
        turn("tool", {"type": "text", "value": "r"}),
        turn("assistant", blocks[0], said),
    ]
    _, conversation = parse(talk(*turns))
    assert isinstance(conversation, Conversation)
    function = {"name": "f", "arguments": {"x": 1}}
    calls = [{"type": "function", "function": function}]
    assert conversation.messages == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "reasoning_content": "t", "tool_calls": calls},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
    ]
