"""Tools in a conversation: their schemas, the assistant's calls, and the results.

Converted to what chat templates expect: `{"type": "function", "function": {...}}` for
schemas and calls, with a call's arguments as an object.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmft_cli.data.forms.examples import Conversation, Message, RowError
from llmft_cli.data.forms.fields import (
    content_of,
    decoded,
    from_json,
    object_at,
    shown,
    text_of,
    to_json,
    type_name,
    without_nulls,
)

CALL_ID = "call{:05}"


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The schemas of a row's tools (`tools`, or `functions` in OpenAI's old style), or None.

    Raises:
        RowError: they are not a list of objects with a function name each, nor JSON text of one.
    """
    for key in ("tools", "functions"):
        value = row.get(key)
        if value is None or value == "":
            continue
        value = from_json(value, key) if isinstance(value, str) else value
        tools = [value] if isinstance(value, dict) else value
        if not isinstance(tools, list):
            raise RowError(f"{key} must be a list of schemas, not {type_name(tools)}")
        if tools:
            return [schema_of(tool, f"{key}[{number}]") for number, tool in enumerate(tools, 1)]
    return None


def schema_of(value: Any, where: str) -> dict[str, Any]:
    """One tool's schema; a bare function schema is wrapped."""
    tool = without_nulls(object_at(decoded(value, where), where), where)
    to_json(tool, where)
    if "function" not in tool:
        if "name" not in tool:
            raise RowError(f"{where} has no function name")
        name_of(tool, where)
        if "parameters" not in tool and "input_schema" in tool:  # as Anthropic has it
            tool["parameters"] = tool.pop("input_schema")
        if tool.get("type") == "function":  # as OpenAI's Responses have it
            del tool["type"]
        return {"type": "function", "function": tool}
    name_of(object_at(tool["function"], f"{where}.function"), f"{where}.function")
    return {"type": "function", **tool}


def calls_of(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The calls in an assistant's message (`tool_calls`, or `function_call` in OpenAI's old style), if any.

    Raises:
        RowError: they are malformed, or both keys are used.
    """
    new, old = turn.get("tool_calls"), turn.get("function_call")
    if not new and not old:
        return []
    if new and old:
        raise RowError(f"{where} has both tool_calls and function_call")
    if old:
        return [call_of(decoded(old, f"{where}.function_call"), f"{where}.function_call")]
    place = f"{where}.tool_calls"
    calls = decoded(new, place)
    if not isinstance(calls, list):
        raise RowError(f"{place} must be a list of calls, not {type_name(calls)}")
    return [call_of(decoded(call, f"{place}[{number}]"), f"{place}[{number}]") for number, call in enumerate(calls, 1)]


def calls_in(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls in a sharegpt turn: an object with name and arguments or a list of them, usually as JSON text.

    Raises:
        RowError: it is neither, or has no function name.
    """
    calls = from_json(value, where) if isinstance(value, str) else value
    if not isinstance(calls, list):
        return [call_of(calls, where)]
    if not calls:
        raise RowError(f"{where} has no calls")
    return [call_of(call, f"{where}[{number}]") for number, call in enumerate(calls, 1)]


def call_of(value: Any, where: str) -> dict[str, Any]:
    call = object_at(value, where)
    if (kind := call.get("type")) not in (None, "function"):
        raise RowError(f"{where} has the type {shown(kind)}; only 'function' is supported")
    if call.get("function") is not None:
        place = f"{where}.function"
        function = object_at(call["function"], place)
    elif call.get("name") is not None:
        place, function = where, call
    else:
        raise RowError(f"{where} has no function name")
    identifier = {} if call.get("id") is None else {"id": text_of(call, "id", where)}
    key = "arguments" if function.get("arguments") is not None or "parameters" not in function else "parameters"
    name, arguments = name_of(function, place), arguments_of(function.get(key), f"{place}.{key}")
    return {**identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def name_of(function: dict[str, Any], where: str) -> str:
    name = text_of(function, "name", where)
    if not name.strip():
        raise RowError(f"{where}.name is empty")
    return name


def arguments_of(value: Any, where: str) -> dict[str, Any]:
    """A call's arguments as an object: chat templates would escape the quotes of a JSON text.

    Some datasets encode them twice, as the JSON text of a JSON text.
    """
    if value is None:
        return {}
    arguments = from_json(value, where) if isinstance(value, str) else without_nulls(value, where)
    arguments = decoded(arguments, where)
    if not isinstance(arguments, dict):
        raise RowError(f"{where} is {type_name(arguments)}, not an object")
    to_json(arguments, where)
    return arguments


def result_message(turn: dict[str, Any], key: str, where: str) -> Message:
    """A tool's result, the text at `key`; any other value becomes JSON text.

    Raises:
        RowError: there is no result, or it has a lone surrogate.
    """
    value = turn.get(key)
    if isinstance(value, (list, dict, bool, int, float)) and not is_text_parts(value):
        text = to_json(value, f"{where}.{key}")
    else:
        text = content_of(turn, key, where)
    message: Message = {"role": "tool", "content": text}
    for extra in ("tool_call_id", "name"):
        if turn.get(extra) is not None:
            message[extra] = text_of(turn, extra, where)
    return message


def is_text_parts(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(part, dict) and part.get("type") == "text" for part in value)
    )


def with_call_ids(conversation: Conversation) -> Conversation | None:
    """A conversation whose calls and results have ids, in order; None if a call or a result has one, or there are no calls.

    The ids have nine letters and digits, as Mistral's templates demand.
    """
    called = [call for message in conversation.messages for call in message.get("tool_calls", ())]
    if (
        not called
        or any("id" in call for call in called)
        or any("tool_call_id" in message for message in conversation.messages)
    ):
        return None
    messages, made, answered = [], 0, 0
    for message in conversation.messages:
        if "tool_calls" in message:
            calls = [{**call, "id": CALL_ID.format(made + number)} for number, call in enumerate(message["tool_calls"])]
            made, answered = made + len(calls), made
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            message = {**message, "tool_call_id": CALL_ID.format(answered)}
            answered += 1
        messages.append(message)
    return replace(conversation, messages=messages)
