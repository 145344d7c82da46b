"""Properties of reading that hold for any row."""

from __future__ import annotations

import contextlib
import json
import string
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmft_cli.data.forms.columns import COLUMNS
from llmft_cli.data.forms.conversations.shapes import PAIRS, UNUSUAL_KEYS
from llmft_cli.data.forms.conversations.speakers import SPEAKER_KEYS, TEXT_KEYS
from llmft_cli.data.forms.examples import LONGEST_REASON
from llmft_cli.data.forms.formats import PARSERS, Conversation, Document, RowError, Tokenised, parse
from llmft_cli.data.forms.ignored_keys import ignored_keys
from llmft_cli.data.forms.prompt_rows import ANSWERS, EXPECTED, PromptRow, parse_prompt

ROLES = ["system", "developer", "user", "assistant", "tool", "function"]
SPEAKERS = ["human", "gpt", "system", "function_call", "observation"]
TURN_KEYS = ["role", "content", "from", "value", "tool_calls", "function_call", "tool_call_id", "name", "weight", "train"]
MARKS = ["weight", "loss", "train_detail", "begin_offset", "end_offset", "masked", "image", "audio", "name", "mood"]
ROW_MARKS = ["label", "kto_tag", "weight", "loss", "images", "role", "parent_id", "id", "chosen", "rejected", "other"]
CALL_KEYS = ["id", "type", "function", "name", "arguments", "text"]
BLOCK_KEYS = ["parts", "functionCall", "functionResponse", "args", "response", "input", "tool_use_id", "thinking", "thought"]
BLOCK_TYPES = ["tool_use", "tool_result", "thinking", "image"]
CALLS_AS_TEXT = ["[f(x=1)]", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', '[{"name": "f", "arguments": "{}"}]']

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-101, 9),
    st.floats(),
    st.text(st.characters(), max_size=4),
    st.sampled_from([*ROLES, *SPEAKERS, *BLOCK_TYPES, *CALLS_AS_TEXT, "text", "[]", "{}", "[{", '{"name": "f"}', "\ud83d"]),
)
KEYS = st.sampled_from(
    sorted({*TURN_KEYS, *CALL_KEYS, *BLOCK_KEYS, *MARKS, *SPEAKER_KEYS, *TEXT_KEYS, *(key for pair in PAIRS for key in pair)})
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": SCALARS | VALUES},
        optional={"tool_calls": VALUES, "function_call": VALUES, **dict.fromkeys(MARKS, SCALARS | VALUES)},
    )
    | st.fixed_dictionaries({"from": st.sampled_from(SPEAKERS), "value": SCALARS | VALUES})
    | st.fixed_dictionaries({"role": st.sampled_from(ROLES), "parts": VALUES | st.lists(VALUES)})
    | VALUES,
    max_size=4,
)
ROW_KEYS = st.sampled_from([*COLUMNS, *sorted(UNUSUAL_KEYS), "systemInstruction", *ROW_MARKS])
ROWS = st.dictionaries(ROW_KEYS, TURNS | VALUES, max_size=5)


def check_example(example: Any) -> None:
    """The invariants that the rest of prepare relies on."""
    if isinstance(example, Conversation):
        json.dumps([example.messages, example.tools], ensure_ascii=False, allow_nan=False).encode()
        assert all(isinstance(message["content"], str) for message in example.messages)
        assert example.messages[-1]["role"] == "assistant"
        assert example.trained is None or len(example.trained) == len(example.messages)
        if example.as_text:
            check_example(example.as_text)
    elif isinstance(example, Tokenised):
        assert len(example.input_ids) == len(example.labels)
        assert {*example.labels} - {-100} <= {*example.input_ids}
    else:
        assert isinstance(example, Document)
        assert example.text.strip()
        example.text.encode()


def check_ignored(row: Any, form: str, columns: dict[str, str] | None = None) -> None:
    """Keys that are told are those of the row or of its messages, each once."""
    keys = ignored_keys(row, form, columns)
    assert len(set(keys)) == len(keys)
    assert {key.partition("[].")[0] for key in keys} <= set(row if isinstance(row, dict) else ["messages"])


PROMPTS = st.dictionaries(st.sampled_from([*COLUMNS, EXPECTED, *ANSWERS]), TURNS | VALUES, max_size=5)


def check_prompt(prompt: PromptRow) -> None:
    """The invariants that eval relies on."""
    json.dumps([prompt.messages, prompt.expected], ensure_ascii=False, allow_nan=False).encode()
    assert prompt.messages[-1]["role"] in ("user", "tool")
    assert prompt.expected is None or (prompt.expected and all(isinstance(text, str) for text in prompt.expected))


@settings(max_examples=150, deadline=None)
@given(row=ROWS | TURNS | VALUES, form=st.sampled_from(["auto", *PARSERS]), merge_turns=st.booleans())
def test_any_value_is_read_or_refused_with_a_reason(row: Any, form: str, merge_turns: bool) -> None:
    with contextlib.suppress(RowError):
        name, example = parse(row, form, merge_turns=merge_turns)
        check_example(example)
        check_ignored(row, name)
    with contextlib.suppress(RowError):
        check_prompt(parse_prompt(row))


@settings(max_examples=150, deadline=None)
@given(row=PROMPTS)
def test_any_prompt_is_read_or_refused_with_a_reason(row: dict[str, Any]) -> None:
    with contextlib.suppress(RowError):
        check_prompt(parse_prompt(row))


@settings(max_examples=100, deadline=None)
@given(
    row=ROWS, columns=st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from([*COLUMNS, "other", "text.name"]), max_size=3)
)
def test_any_row_with_any_columns_is_read_or_refused_with_a_reason(row: Any, columns: dict[str, str]) -> None:
    with contextlib.suppress(RowError):
        name, example = parse(row, "auto", columns)
        check_example(example)
        check_ignored(row, name, columns)


LONG = st.text(string.printable, min_size=50, max_size=60).map(lambda text: 40 * text)
LONG_VALUES = st.recursive(
    LONG | SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | LONG, inner, max_size=20), max_leaves=8
)
LONG_TURNS = st.lists(
    st.fixed_dictionaries({"role": LONG, "content": LONG_VALUES}) | st.fixed_dictionaries({"from": LONG, "value": LONG_VALUES})
)


@settings(max_examples=100, deadline=None)
@given(
    row=st.dictionaries(st.sampled_from(COLUMNS) | LONG, LONG_TURNS | LONG_VALUES, max_size=30),
    form=st.sampled_from(["auto", *PARSERS]),
)
def test_reasons_are_short_whatever_a_row_contains(row: dict[str, Any], form: str) -> None:
    """A row of a wide table was refused with 24.9 KB of keys."""
    reasons = [
        reason_of(parse, row, form),
        reason_of(parse, row, form, {"prompt": 100 * "key."}),
        reason_of(parse_prompt, row),
    ]
    assert max(map(len, reasons)) <= LONGEST_REASON
    assert "\n" not in "".join(reasons)


def reason_of(reader: Callable[..., Any], *arguments: Any) -> str:
    try:
        reader(*arguments)
    except RowError as error:
        return str(error)
    return ""


WHOLE = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(WHOLE, max_size=8)
SAID = TEXTS.filter(str.strip)
ARGUMENTS = st.dictionaries(
    TEXTS,
    st.recursive(TEXTS | st.integers() | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=4),
    max_size=3,
)
CALLS = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": SAID, "arguments": ARGUMENTS})},
    optional={"id": SAID},
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(SAID)})
        for calls in draw(st.lists(st.lists(CALLS, min_size=1, max_size=2), max_size=2)):
            messages.append({"role": "assistant", "content": draw(TEXTS), "tool_calls": calls})
            messages += [{"role": "tool", "content": draw(TEXTS)} for _ in calls]
        messages.append({"role": "assistant", "content": draw(SAID)})
    return messages


@settings(max_examples=100, deadline=None)
@given(messages=conversations())
def test_valid_conversations_come_through_unchanged(messages: list[dict[str, Any]]) -> None:
    expected = ("messages", Conversation(messages))
    assert parse({"messages": messages}) == expected
    assert parse({"messages": json.dumps(messages)}) == expected
    written = [
        {**turn, "tool_calls": [{**call, "function": as_openai(call["function"])} for call in turn["tool_calls"]]}
        if "tool_calls" in turn
        else {**turn, "tool_calls": None, "name": None}
        for turn in messages
    ]
    assert parse({"messages": written}) == expected


def as_openai(function: dict[str, Any]) -> dict[str, Any]:
    return {**function, "arguments": json.dumps(function["arguments"])}
