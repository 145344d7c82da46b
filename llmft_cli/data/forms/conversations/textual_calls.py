"""Tool calls that a dataset writes into the assistant's text: JSON, Hermes' `<tool_call>`, and ToolACE's `[f(x=1)]`.

A text counts as a call only if a tool's result follows it and it can be parsed without doubt.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from llmft_cli.data.forms.examples import Message, RowError
from llmft_cli.data.forms.fields import DECODER, to_json
from llmft_cli.data.forms.tool_calls import call_of

HERMES_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
HERMES_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
# A function's name may contain spaces, as in ToolACE.
FUNCTION_NAME = re.compile(r"\s*([^\W\d][\w .:/-]*?)\s*\(")
BETWEEN_CALLS = re.compile(r"\s*(,|$)")
LONGEST_LIST_OF_CALLS = 10_000
MOST_PARENTHESES_OF_A_CALL = 100
CALL_KEYS = ({"name", "arguments"}, {"name", "parameters"})
# What Python raises for source text that is not an expression.
NOT_PYTHON = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)
WHERE = "a call in the text"

Parsed = tuple[list[Message], list[bool] | None]


def with_parsed_calls(messages: list[Message], learned: list[bool] | None) -> Parsed | None:
    """The messages with calls in texts as `tool_calls`; None if no text with a tool's result after it is a call.

    Args:
        learned: for each message whether it is supervised, or None.
    """
    result: list[Message] = []
    flags: list[bool] = []
    certain = False
    number = 0
    while number < len(messages):
        stop = number + 1
        while stop < len(messages) and messages[stop]["role"] == "tool":
            stop += 1
        turns = parsed_turns(messages[number:stop])
        certain = certain or (turns is not None and stop > number + 1)
        turns = turns or messages[number:stop]
        result += turns
        flags += [learned is not None and learned[number], *[False] * (len(turns) - 1)]
        number = stop
    return (result, None if learned is None else flags) if certain else None


def parsed_turns(turns: list[Message]) -> list[Message] | None:
    """An assistant's text as calls, with the results after it; None if it is no call, or the results are too many."""
    first, *results = turns
    if first["role"] != "assistant" or "tool_calls" in first:
        return None
    found = calls_in_text(first["content"])
    if found is None:
        return None
    content, calls = found
    results = [part for result in results for part in separate_results(result)]
    if len(results) > len(calls):
        return None
    return [{**first, "content": content, "tool_calls": calls}, *results]


def calls_in_text(text: str) -> tuple[str, list[dict[str, Any]]] | None:
    """The text before the calls, and the calls; None if the text does not end with calls alone."""
    try:
        if "<tool_call>" in text:
            return hermes_calls(text)
        stripped = text.strip()
        if stripped.startswith(("{", "[{")):
            calls = json_calls(DECODER.decode(stripped))
            return ("", calls) if calls else None
        if stripped.startswith("[") and stripped.endswith(")]") and len(stripped) <= LONGEST_LIST_OF_CALLS:
            calls = python_calls(stripped[1:-1])
            return ("", calls) if calls else None
    except (RowError, ValueError, RecursionError):
        pass
    return None


def hermes_calls(text: str) -> tuple[str, list[dict[str, Any]]] | None:
    start = text.index("<tool_call>")
    if HERMES_CALL.sub("", text[start:]).strip():
        return None
    calls = json_calls([value_of(source) for source in HERMES_CALL.findall(text)])
    return (text[:start].rstrip(), calls) if calls else None


def json_calls(value: Any) -> list[dict[str, Any]] | None:
    """The calls in an object with a name and arguments, or a list of such objects; None if it is anything else."""
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and call.keys() - {"id"} in CALL_KEYS for call in calls):
        return None
    return [call_of(call, WHERE) for call in calls]


def value_of(source: str) -> Any:
    """The value of a JSON text or a Python literal; None if it is neither."""
    try:
        return DECODER.decode(source)
    except (ValueError, RecursionError):
        pass
    try:
        return as_json(ast.literal_eval(quiet_expression(source)))
    except NOT_PYTHON:
        return None


def python_calls(source: str) -> list[dict[str, Any]] | None:
    """The calls in `f(x=1), g(y='a')`; None if it is anything else."""
    calls = []
    position = 0
    while position < len(source):
        name = FUNCTION_NAME.match(source, position)
        found = name and arguments_at(source, name.end())
        if not found:
            return None
        assert name is not None
        arguments, position = found
        calls.append(call_of({"name": name[1], "arguments": arguments}, WHERE))
        between = BETWEEN_CALLS.match(source, position)
        if not between:
            return None
        position = between.end()
    return calls


def arguments_at(source: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The keyword arguments that begin at `start`, all literals, and the position after their closing parenthesis."""
    stop = start - 1
    for _ in range(MOST_PARENTHESES_OF_A_CALL):
        stop = source.find(")", stop + 1)
        if stop < 0:
            return None
        try:
            call = quiet_expression(f"f({source[start:stop]})")
        except NOT_PYTHON:  # the parenthesis is part of a value
            continue
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            return None
        try:
            arguments = {str(keyword.arg): as_json(ast.literal_eval(keyword.value)) for keyword in call.keywords}
        except NOT_PYTHON:
            return None
        return arguments, stop + 1
    return None


def quiet_expression(source: str) -> ast.expr:
    """The syntax tree of an expression, without warnings about its escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source.strip(), mode="eval").body


def as_json(value: Any) -> Any:
    """A Python value as JSON would hold it: tuples become lists.

    Raises:
        RowError: it cannot be written as JSON.
    """
    return json.loads(to_json(value, WHERE))


def separate_results(message: Message) -> list[Message]:
    """The results in a tool message: without Hermes' tags, which chat templates write themselves, one message for each."""
    text = message["content"]
    if not HERMES_RESULT.search(text) or HERMES_RESULT.sub("", text).strip():
        return [message]
    return [{**message, "content": found} for found in HERMES_RESULT.findall(text)]
