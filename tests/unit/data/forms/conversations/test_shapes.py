"""Conversations of other shapes and under other keys, as known datasets have them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from turns import ANSWER, CALLS, SYSTEM, USER, reason_of

from llmft_cli.data.forms.formats import Conversation, Document, parse

TEXTS = ["q", "a", "q", "a"]
TURNS = [USER, ANSWER]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": TEXTS, "source": "x"},  # LIMA
        {"id": "7", "data": TEXTS},  # UltraChat
        {"conversation": [{"input": "q", "output": "a"}] * 2, "source": "x"},  # Capybara
        {"dialog": TEXTS},
        {"dialogue": TEXTS},
        {"conversation": [["q", "a"], ["q", "a"]]},
        {"messages": [{"user": "q", "assistant": "a"}] * 2},
        {"messages": [{"user": "q"}, {"assistant": "a"}] * 2},
        {"chat": TURNS * 2},
        {"turns": TURNS * 2, "text": "all of it"},
        {"messages": None, "conversation": TURNS * 2, "prompt": None},
        {"conversation": json.dumps(TURNS * 2)},
        {"conversations": json.dumps(TEXTS)},
        {"messages": [json.dumps(turn) for turn in TURNS * 2]},
        {"messages": {"role": ["user", "assistant"] * 2, "content": TEXTS}},
        {"messages": {"role": ["user", "assistant"] * 2, "content": TEXTS, "name": None}},
        {"messages": json.dumps({"role": ["user", "assistant"] * 2, "content": TEXTS})},
        {"messages": [{"role": "human", "value": "q"}, {"role": "gpt", "value": "a"}] * 2},
        {"messages": [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}] * 2},
        {"messages": [{"role": "user", "text": "q"}, {"role": "model", "text": "a"}] * 2},
        {"messages": [{"user": "human", "text": "q"}, {"user": "bot", "text": "a"}] * 2},
        {"messages": [USER, {"from": "gpt", "value": "a"}] * 2},
        TURNS * 2,
    ],
)
def test_shapes_of_messages(row: Any) -> None:
    assert parse(row) == ("messages", Conversation(TURNS * 2))


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"human": "q", "assistant": "a"}]},
        {"conversations": [{"speaker": "human", "message": "q"}, {"speaker": "ai", "message": "a"}]},
        {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}},
        {"messages": [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}]},
        {"messages": [{"from": "human", "text": "q"}, {"from": "gpt", "text": "a"}]},
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    ],
)
def test_shapes_under_the_keys_of_sharegpt(row: Any) -> None:
    assert parse(row)[1] == Conversation(TURNS)


def test_a_pair_may_have_a_system_message() -> None:
    row = {"conversation": [{"system": "s", "input": "q", "output": "a"}, {"system": "", "input": "q", "output": "a"}]}
    assert parse(row) == ("messages", Conversation([SYSTEM, *TURNS, *TURNS]))


def test_texts_that_look_like_json_are_texts() -> None:
    texts = ['{"role": of what?', '{"a": 1}']
    assert parse({"conversations": texts})[1] == Conversation([{**USER, "content": texts[0]}, {**ANSWER, "content": texts[1]}])


def test_a_turn_of_a_mixed_table_has_its_text_under_one_of_its_keys() -> None:
    turns = [{"role": "user", "content": None, "value": "q"}, {"role": "assistant", "content": "a", "value": None}]
    assert parse({"messages": turns}) == ("messages", Conversation(TURNS))


def test_roles_of_calls_and_their_results() -> None:
    turns = [
        USER,
        {"role": "tool_call", "content": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
        {"role": "tool_response", "content": "r"},
        ANSWER,
    ]
    calls = {**CALLS, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
    expected = [USER, calls, {"role": "tool", "content": "r"}, ANSWER]
    assert parse({"messages": turns}) == ("messages", Conversation(expected))


def test_calls_in_a_sharegpt_turn_are_not_lost() -> None:
    """`tool_calls` of a turn with `from` and `value` were ignored."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "", "tool_calls": CALLS["tool_calls"]}]
    assert parse({"conversations": turns}) == ("sharegpt", Conversation([USER, CALLS]))


def test_lists_of_texts_that_need_not_be_a_conversation() -> None:
    assert parse({"text": "t", "data": ["q", "a"]}) == ("text", Document("t"))
    assert parse({"content": "t", "turns": ["q", "a"]}) == ("text", Document("t"))
    assert parse({"text": "t", "dialog": TURNS}, "text") == ("text", Document("t"))
    assert parse({"t": "t", "dialog": TURNS}, columns={"text": "t"}) == ("text", Document("t"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": ["q", "a", "q"]}, "the last message is from user, with no answer to learn from"),
        ({"chat": "[]"}, "no known format has the keys 'chat'"),
        ({"conversations": ["q"]}, "conversations[1] is text, not an object"),
        ({"conversations": ["q", 7]}, "conversations[1] is text, not an object"),
        ({"messages": {"role": ["user"], "content": ["q", "a"]}}, "messages has lists of different lengths: role, content"),
        ({"messages": {"role": "user", "content": "q"}}, "messages must be a list of messages, not an object"),
        (
            {"conversation": [{"input": "q", "output": "a"}, {"input": "q"}]},
            "no known format has the keys 'conversation'",
        ),
        (
            {"messages": [{"input": "q", "output": "a"}, {"input": "q"}]},
            "messages[2] has not both input and output, as the first item has",
        ),
        ({"messages": [{"user": "q", "assistant": None}]}, "messages[1].assistant is null, not text"),
        ({"turns": ["a first question", "a second question"]}, "no known format has the keys 'turns'"),
        ({"data": [{"input": "q", "output": "a"}]}, "no known format has the keys 'data'"),
        ({"chat": "User: q"}, "no known format has the keys 'chat'"),
        ({"conversation": "[{"}, "no known format has the keys 'conversation'"),
        ({"dialog": [{"role": "critic", "content": "x"}]}, "no known format has the keys 'dialog'"),
        ({"conversation": [USER, {"role": "critic", "content": "x"}]}, "conversation[2] has the unknown role 'critic'"),
    ],
)
def test_shapes_that_are_not_known(row: Any, reason: str) -> None:
    assert reason_of(row) == reason
