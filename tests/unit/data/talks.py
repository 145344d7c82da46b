"""Conversations with thinking and tools, and their rendered rows."""

from __future__ import annotations

from typing import Any

from llmft_cli.data.encoding.encoder import ConversationEncoder
from llmft_cli.data.forms.examples import Conversation
from llmft_cli.data.forms.formats import parse

PARAMETERS = {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}, "required": ["place"]}
TOOLS = [{"type": "function", "function": {"name": "wind", "description": "Speed of the wind.", "parameters": PARAMETERS}}]
Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def answer(text: str, thought: str = "", places: tuple[str, ...] = ()) -> Message:
    functions = [("call" + place.rjust(5, "0"), {"name": "wind", "arguments": {"place": place}}) for place in places]
    calls = [{"id": identifier, "type": "function", "function": function} for identifier, function in functions]
    thinking = {"reasoning_content": thought} if thought else {}
    return {"role": "assistant", "content": text, **thinking} | ({"tool_calls": calls} if calls else {})


def result(place: str, text: str) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": f"call{place.rjust(5, '0')}", "name": "wind"}


def rows_of(tokenizer: Any, messages: list[Message], tools: Any) -> tuple[ConversationEncoder, Any]:
    _, conversation = parse({"messages": messages} | ({"tools": tools} if tools else {}))
    assert isinstance(conversation, Conversation)
    encoder = ConversationEncoder(tokenizer)
    return encoder, encoder.rows(conversation)
