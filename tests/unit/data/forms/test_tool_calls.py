"""Tool calls, results and schemas in every supported format."""

from __future__ import annotations

import json
from typing import Any

import pytest
from turns import ANSWER, CALL, CALLS, FUNCTION, RESULT, USER, reason_of, talk

from llmft_cli.data.forms.formats import Conversation, parse

SCHEMA = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"role": "assistant", "tool_calls": [CALL]}, CALLS),
        ({**CALLS, "content": None, "function_call": None, "refusal": None}, CALLS),
        ({**CALLS, "content": []}, CALLS),
        ({**CALLS, "content": [{"type": "text", "text": "I look."}]}, {**CALLS, "content": "I look."}),
        ({**CALLS, "tool_calls": '[{"id": "1", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]'}, CALLS),
        ({**CALLS, "tool_calls": ['{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}']}, CALLS),
        ({**CALLS, "tool_calls": [{"id": "1", "name": "f", "arguments": {"x": 1, "y": None}, "function": None}]}, CALLS),
        (
            {**CALLS, "tool_calls": [{**CALL, "id": None, "function": {"name": "f", "arguments": '{"x": null}'}}]},
            {**CALLS, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}]},
        ),
        ({**CALLS, "tool_calls": [{"id": "1", "name": "f", "arguments": '"{\\"x\\": 1}"'}]}, CALLS),
        ({**CALLS, "tool_calls": [{"id": "1", "name": "f", "parameters": {"x": 1}}]}, CALLS),
        (
            {**CALLS, "tool_calls": [{"function": {"name": "f"}}]},
            {**CALLS, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}, "tool_calls": []},
            {**CALLS, "tool_calls": [{"type": "function", "function": FUNCTION}]},
        ),
        ({**ANSWER, "tool_calls": [], "function_call": None}, ANSWER),
        ({**ANSWER, "tool_calls": None, "function_call": ""}, ANSWER),
    ],
)
def test_calls_of_every_spelling(turn: Any, expected: Any) -> None:
    assert parse(talk(USER, turn)) == ("messages", Conversation([USER, expected]))


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({**RESULT, "other": 1}, RESULT),
        ({**RESULT, "role": "function", "tool_call_id": None}, {"role": "tool", "content": "r", "name": "f"}),
        ({"role": "tool", "content": {"a": ["é", 1.5, None]}}, {"role": "tool", "content": '{"a": ["é", 1.5, null]}'}),
        ({"role": "tool", "content": [1, 2]}, {"role": "tool", "content": "[1, 2]"}),
        ({"role": "tool", "content": []}, {"role": "tool", "content": "[]"}),
        ({"role": "tool", "content": {"speed": 4}}, {"role": "tool", "content": '{"speed": 4}'}),
        ({"role": "tool", "content": 4}, {"role": "tool", "content": "4"}),
        ({"role": "tool", "content": 0.5}, {"role": "tool", "content": "0.5"}),
        ({"role": "tool", "content": True}, {"role": "tool", "content": "true"}),
        ({"role": "tool", "content": [{"type": "text", "text": "r"}]}, {"role": "tool", "content": "r"}),
        (
            {"role": "tool", "content": [{"type": "text", "text": "r"}, {"type": "file"}]},
            {"role": "tool", "content": '[{"type": "text", "text": "r"}, {"type": "file"}]'},
        ),
    ],
)
def test_results_of_every_spelling(turn: Any, expected: Any) -> None:
    assert parse(talk(USER, CALLS, turn, ANSWER)) == ("messages", Conversation([USER, CALLS, expected, ANSWER]))


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [SCHEMA]},
        {"tools": SCHEMA},
        {"tools": [{"function": SCHEMA["function"]}]},
        {"tools": [SCHEMA["function"]], "functions": None},
        {"tools": [{**SCHEMA, "strict": None, "function": {**SCHEMA["function"], "description": None}}]},
        {
            "tools": '[{"type": "function", "function": {"name": "f", "parameters": '
            '{"type": "object", "properties": {"x": {"type": "integer"}}}}}]'
        },
        {"functions": [SCHEMA["function"]], "tools": None},
        {"tools": [{"type": "function", **SCHEMA["function"]}]},  # type: ignore[dict-item]
        {"tools": [{"name": "f", "input_schema": SCHEMA["function"]["parameters"]}]},  # type: ignore[index]
        {"functions": [SCHEMA["function"]], "tools": []},
    ],
)
def test_tools_of_every_spelling(columns: dict[str, Any]) -> None:
    turns = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert parse(talk(USER, ANSWER, **columns)) == ("messages", Conversation([USER, ANSWER], [SCHEMA]))
    assert parse({**turns, **columns}) == ("sharegpt", Conversation([USER, ANSWER], [SCHEMA]))
    assert parse({"prompt": [USER], "completion": "a", **columns}) == (
        "prompt-completion",
        Conversation([USER, ANSWER], [SCHEMA]),
    )


@pytest.mark.parametrize("value", [None, "", [], "[]"])
def test_no_tools(value: Any) -> None:
    assert parse(talk(USER, ANSWER, tools=value)) == ("messages", Conversation([USER, ANSWER]))


def test_tools_of_a_prompt_without_messages_are_another_matter() -> None:
    assert parse({"prompt": "q", "completion": "a", "tools": "a hammer"}) == ("prompt-completion", Conversation([USER, ANSWER]))


@pytest.mark.parametrize("row", [{"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}])
def test_schemas_beside_texts_are_tools(row: dict[str, Any]) -> None:
    """Schemas beside a prompt or an instruction of text were dropped without a word."""
    schema = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for tools in ([schema], json.dumps([schema])):
        assert parse({**row, "tools": tools})[1] == Conversation([USER, ANSWER], [schema])
    assert parse({**row, "tools": []})[1] == Conversation([USER, ANSWER])


def called(**changes: Any) -> dict[str, Any]:
    """A row with changes to the call's function; None removes a key."""
    function = {key: value for key, value in {**FUNCTION, **changes}.items() if value is not None}
    return talk(USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (called(name=None), "messages[2].tool_calls[1].function.name is missing"),
        (called(name=7), "messages[2].tool_calls[1].function.name is a number, not text"),
        (called(name=" "), "messages[2].tool_calls[1].function.name is empty"),
        (
            called(arguments="{x: 1}"),
            f"{(ARGUMENTS := 'messages[2].tool_calls[1].function.arguments')} is not valid JSON: "
            "Expecting property name enclosed in double quotes at character 2",
        ),
        (called(arguments=""), f"{ARGUMENTS} is not valid JSON: Expecting value at character 1"),
        (called(arguments='{"x": Infinity}'), f"{ARGUMENTS} is not valid JSON: Infinity is not a JSON value"),
        (
            called(arguments="9" * 5000),
            f"{ARGUMENTS} is not valid JSON: Exceeds the limit (4300 digits) for integer string conversion",
        ),
        (called(arguments="[" * 100_000), f"{ARGUMENTS} is nested too deeply"),
        (called(arguments='"x"'), f"{ARGUMENTS} is text, not an object"),
        (
            called(arguments='"{"'),
            f"{ARGUMENTS} is not valid JSON: Expecting property name enclosed in double quotes at character 2",
        ),
        (called(arguments=[1]), f"{ARGUMENTS} is a list, not an object"),
        (
            called(arguments={"x": float("nan")}),
            f"{ARGUMENTS} cannot be written as JSON: it contains a non-finite number",
        ),
        (
            called(arguments={"x": b"y"}),
            f"{ARGUMENTS} cannot be written as JSON: Object of type bytes is not JSON serializable",
        ),
        (called(arguments='{"x": "\\ud83d"}'), f"{ARGUMENTS} has a lone surrogate (\\ud83d)"),
        (talk(USER, {**CALLS, "tool_calls": {}, "function_call": 7}), "messages[2].function_call is a number, not an object"),
        (talk(USER, {**ANSWER, "function_call": {"arguments": "{}"}}), "messages[2].function_call has no function name"),
        (talk(USER, {**CALLS, "function_call": FUNCTION}), "messages[2] has both tool_calls and function_call"),
        (talk(USER, {**CALLS, "tool_calls": CALL}), "messages[2].tool_calls must be a list of calls, not an object"),
        (talk(USER, {**CALLS, "tool_calls": "f(1)"}), "messages[2].tool_calls must be a list of calls, not text"),
        (
            talk(USER, {**CALLS, "tool_calls": "[{]"}),
            "messages[2].tool_calls is not valid JSON: Expecting property name enclosed in double quotes at character 3",
        ),
        (talk(USER, {**CALLS, "tool_calls": ["f"]}), "messages[2].tool_calls[1] is text, not an object"),
        (talk(USER, {**CALLS, "tool_calls": [CALL, {}]}), "messages[2].tool_calls[2] has no function name"),
        (talk(USER, {**CALLS, "tool_calls": [{"function": "f"}]}), "messages[2].tool_calls[1].function is text, not an object"),
        (
            talk(USER, {**CALLS, "tool_calls": [{"type": "custom", "custom": {}}]}),
            "messages[2].tool_calls[1] has the type 'custom'; only 'function' is supported",
        ),
        (talk(USER, {**CALLS, "tool_calls": [{**CALL, "id": 7}]}), "messages[2].tool_calls[1].id is a number, not text"),
        (
            talk({**USER, "tool_calls": [CALL]}, ANSWER),
            "messages[1] is from user and calls tools, but only the assistant can",
        ),
        (talk(USER, {**CALLS, "content": 7}), "messages[2].content is a number, not text"),
        (talk(USER, CALLS, {"role": "tool"}, ANSWER), "messages[3].content is missing"),
        (talk(USER, CALLS, {"role": "tool", "content": None}, ANSWER), "messages[3].content is null, not text"),
        (
            talk(USER, CALLS, {"role": "function", "content": float("nan")}, ANSWER),
            "messages[3].content cannot be written as JSON: it contains a non-finite number",
        ),
        (talk(USER, CALLS, {**RESULT, "tool_call_id": 7}, ANSWER), "messages[3].tool_call_id is a number, not text"),
        (talk(USER, CALLS, {**RESULT, "name": []}, ANSWER), "messages[3].name is an empty list, not text"),
        (
            talk(USER, CALLS, {"role": "tool", "content": ["\ud83d"]}, ANSWER),
            "messages[3].content has a lone surrogate (\\ud83d)",
        ),
    ],
)
def test_malformed_calls_and_results(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row) == reason


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("a hammer", "tools is not valid JSON: Expecting value at character 1"),
        (7, "tools must be a list of schemas, not a number"),
        ("7", "tools must be a list of schemas, not a number"),
        (["f"], "tools[1] is text, not an object"),
        ([SCHEMA, {}], "tools[2] has no function name"),
        ([{"type": "web_search"}], "tools[1] has no function name"),
        ([{"function": "f"}], "tools[1].function is text, not an object"),
        ([{"function": {}}], "tools[1].function.name is missing"),
        ({}, "tools[1] has no function name"),
        ([{"name": ""}], "tools[1].name is empty"),
        (["[" * 100_000], "tools[1] is nested too deeply"),
        ([{"name": "f", "description": "\udc00"}], "tools[1] has a lone surrogate (\\udc00)"),
    ],
)
def test_malformed_tools(tools: Any, reason: str) -> None:
    assert reason_of(talk(USER, ANSWER, tools=tools)) == reason
