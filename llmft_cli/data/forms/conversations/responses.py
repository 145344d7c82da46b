"""Requests and replies of OpenAI's Responses API: `instructions`, `input` and `output`, lists of typed items."""

from __future__ import annotations

from typing import Any

from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.fields import object_at, shown, text_of
from llmft_cli.data.forms.learning_keys import marks_of

CALL, RESULT, MESSAGE, REASONING = "function_call", "function_call_output", "message", "reasoning"
TYPES = (CALL, RESULT, MESSAGE, REASONING)


def is_response(row: dict[str, Any]) -> bool:
    """Whether a row's `output` is a list of the API's items."""
    output = row.get("output")
    return isinstance(output, list) and any(isinstance(item, dict) and item.get("type") in TYPES for item in output)


def prompt_and_completion(row: dict[str, Any]) -> dict[str, Any]:
    """The row with OpenAI-style turns under `prompt` and `completion`.

    Raises:
        RowError: an item is malformed, or of another type.
    """
    asked = row.get("input")
    prompt = turns_of(asked, "input") if isinstance(asked, list) else [{"role": "user", "content": text_of(row, "input")}]
    system = row.get("system") or row.get("instructions")
    return {"system": system, "prompt": prompt, "completion": turns_of(row["output"], "output"), "tools": row.get("tools")}


def turns_of(items: list[Any], key: str) -> list[dict[str, Any]]:
    """A turn for each item, with the reasoning before it."""
    turns: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for number, value in enumerate(items, 1):
        place = f"{key}[{number}]"
        item = object_at(value, place)
        kind = item.get("type") or MESSAGE
        if kind == REASONING:
            thoughts += thoughts_in(item, place)
            continue
        turn = turn_of(item, kind, place)
        if thoughts and turn["role"] == "assistant":
            turn["reasoning_content"] = "\n\n".join(thoughts)
            thoughts = []
        turns.append(turn)
    return turns


def turn_of(item: dict[str, Any], kind: Any, place: str) -> dict[str, Any]:
    if kind == MESSAGE:
        return {"role": text_of(item, "role", place), "content": item.get("content"), **marks_of(item)}
    if kind == RESULT:
        return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    if kind != CALL:
        raise RowError(f"{place} has the type {shown(kind)}; only messages, function calls and reasoning are supported")
    call = {"id": item.get("call_id"), "name": item.get("name"), "arguments": item.get("arguments")}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def thoughts_in(item: dict[str, Any], place: str) -> list[str]:
    """The readable texts of a reasoning item; none if it is encrypted."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise RowError(f"{place} has no list of texts")
    return [text_of(object_at(part, place), "text", place) for part in parts]
