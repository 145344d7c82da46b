"""Conversation turns, with and without tools, and rows made of them."""

from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.data.forms.formats import RowError, parse

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
FUNCTION = {"name": "f", "arguments": {"x": 1}}
CALL = {"id": "1", "type": "function", "function": FUNCTION}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "1", "name": "f"}


def talk(*messages: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"messages": list(messages), **others}


def reason_of(row: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        parse(row)
    return str(caught.value)
