"""Rows of OpenAI's Responses API."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, CALLS, SYSTEM, USER, reason_of

from llmft_cli.data.forms.formats import Conversation, parse

REPLY = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}', "id": "fc_1"}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "r"}
TOOL = {"role": "tool", "content": "r", "tool_call_id": "1"}


def reasoning(*texts: str) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": text} for text in texts],
        "encrypted_content": "x",
    }


def test_a_text_and_its_reply() -> None:
    assert parse({"input": "q", "output": [REPLY]}) == ("question-answer", Conversation([USER, ANSWER]))
    row = {"instructions": "s", "input": "q", "output": [reasoning(), REPLY]}
    assert parse(row)[1] == Conversation([SYSTEM, USER, ANSWER])


def test_only_the_output_is_learned() -> None:
    asked = [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}, CALL, RESULT]
    tools = [{"type": "function", "name": "f", "parameters": {}}]
    row = {"input": asked, "output": [reasoning("t", "u"), REPLY], "tools": tools}
    messages = [USER, CALLS, TOOL, {**ANSWER, "reasoning_content": "t\n\nu"}]
    schema = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert parse(row)[1] == Conversation(messages, [schema], (False, False, False, True))
    row = {"input": "q", "output": [reasoning("t"), CALL, RESULT, REPLY]}
    assert parse(row)[1] == Conversation([USER, {**CALLS, "reasoning_content": "t"}, TOOL, ANSWER])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"input": [{"type": "image_generation_call"}], "output": [REPLY]},
            "input[1] has the type 'image_generation_call'; only messages, function calls and reasoning are supported",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}], "output": [REPLY]},
            "the row has an image, which a text model cannot learn from (prompt[1].content[1])",
        ),
        ({"input": 7, "output": [REPLY]}, "input is a number, not text"),
        ({"input": ["q"], "output": [REPLY]}, "input[1] is text, not an object"),
        ({"input": "q", "output": [{"type": "reasoning", "summary": "t"}, REPLY]}, "output[1] has no list of texts"),
        (
            {"input": "q", "output": [{"type": "web_search_call"}, REPLY]},
            "output[1] has the type 'web_search_call'; only messages, function calls and reasoning are supported",
        ),
    ],
)
def test_items_that_are_not_supported(row: Any, reason: str) -> None:
    assert reason_of(row) == reason
