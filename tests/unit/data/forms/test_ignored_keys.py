"""Keys that no format reads are told by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from turns import ANSWER, CALLS, RESULT, USER, talk

from llmft_cli.data.forms import ignored_keys as ignoring
from llmft_cli.data.forms.formats import FORMS, PARSERS, PREFERENCE, TOOLS, parse
from llmft_cli.data.forms.ignored_keys import READ_BESIDE, ignored_keys


def ignored(row: dict[str, Any], columns: dict[str, str] | None = None) -> tuple[str, ...]:
    return ignored_keys(row, parse(row, "auto", columns)[0], columns)


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        (talk(USER, ANSWER), ()),
        (talk(USER, ANSWER, system="s", tools=[], id=7, score=None, tags=[], extra={}, note=""), ("id",)),
        (talk(USER, ANSWER, score=0, label=0, rejected_response="no"), ("score", "label", "rejected_response")),
        (talk(USER, ANSWER, weight=1, kto_tag=True, label=True, train="true", images=[], image=0), ()),
        (talk(USER, ANSWER, weight=70, loss=0.8), ("weight", "loss")),
        (
            talk({**USER, "name": "Ann", "reasoning": "r"}, {**ANSWER, "refusal": None, "annotations": [], "logprobs": [0.1]}),
            ("messages[].name", "messages[].reasoning", "messages[].logprobs"),
        ),
        (talk(USER, {**ANSWER, "x": 1}, USER, {**ANSWER, "x": 1, "y": 2}), ("messages[].x", "messages[].y")),
        (talk(USER, CALLS, {**RESULT, "name": "f"}, {**ANSWER, "thinking": "t"}), ()),
        ({"messages": json.dumps([USER, {**ANSWER, "x": 1}]), "conversations": "[]"}, ("conversations", "messages[].x")),
        ({"conversations": [USER, {**ANSWER, "x": 1}], "text": "t"}, ("text", "conversations[].x")),
        (
            {"conversations": [{"from": "human", "value": "q", "x": 1}, {"from": "gpt", "value": "a", "weight": 1}]},
            ("conversations[].x",),
        ),
        (
            {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}], "x": 1}]},
            ("contents[].x",),
        ),
        ({"dialog": [{"input": "q", "output": "a", "weight": 1, "x": 1, "system": "s"}]}, ("dialog[].x",)),
        ({"messages": [{**USER, "input": "x"}, ANSWER]}, ("messages[].input",)),
        ({"instruction": "q", "input": "", "output": "a", "text": "all", "history": []}, ("text",)),
        ({"prompt": "q", "completion": "a", "question": "q", "tools": "f"}, ("question", "tools")),
        ({"prompt": [USER], "completion": [{**ANSWER, "x": 1}], "tools": None}, ("completion[].x",)),
        ({"question": "q", "answer": "a", "response": "b", "input": "i", "context": "c"}, ("response", "input")),
        ({"question": "q", "answer": None, "response": "b"}, ()),
        ({"instruction": "q", "input": "i", "response": "b"}, ()),
        ({"text": "t", "content": "c", "label": True}, ("content", "label")),
        ({"content": "c", "url": "u"}, ("url",)),
        ({"": "12", "content": "c"}, ()),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 1], "text": "t"}, ("text",)),
    ],
)  # fmt: skip
def test_keys_that_are_not_read(row: dict[str, Any], keys: tuple[str, ...]) -> None:
    assert ignored(row) == keys


def test_keys_are_told_by_the_names_of_the_source() -> None:
    columns = {"question": "ask", "answer": "reply.text", "messages": "talk"}
    row = {"ask": "q", "reply": {"text": "a", "by": "b"}, "talk": [], "mood": "m"}
    assert ignored(row, columns) == ("mood",)
    turns = {"dialogue": [USER, {**ANSWER, "x": 1}]}
    assert ignored(turns, {"messages": "dialogue"}) == ("dialogue[].x",)


def test_long_keys_are_cut() -> None:
    assert ignored(talk(USER, ANSWER, **{"k" * 500: 1})) == ("k" * 60 + "...",)


def test_the_keys_of_each_format_are_known() -> None:
    assert set(READ_BESIDE) == set(PARSERS)
    for form, wanted, others in FORMS:
        if form not in (PREFERENCE, "tokens"):
            row = {key: [] if key in TOOLS else "x" for key in wanted | others}
            used, _ = ignoring.used_keys({**row, "tools": [1]}, form)
            assert wanted | others <= READ_BESIDE[form] | set(used) | ({"input"} if form == "question-answer" else set())


def test_a_row_of_two_key_messages_costs_no_look_at_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ignoring, "unread_keys_of_turn", lambda *_: pytest.fail("looked"))
    assert ignored(talk(USER, ANSWER)) == ()


@pytest.mark.parametrize(
    ("row", "ignored"),
    [
        ({"conversations": ["q", "a"]}, ()),
        (talk(USER, {**CALLS, "role": "model"}, {**RESULT, "role": "tool_response"}, ANSWER), ()),
        ({"id": "7", "data": ["q", "a"]}, ("id",)),
        ({"conversation": [{"input": "q", "output": "a"}], "source": "x"}, ("source",)),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, ()),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"], "mood": ["m", None]}}, ("messages[].mood",)),
        ({"chat": [{"from": "human", "text": "q", "x": 1}, {"from": "gpt", "text": "a", "value": None}]}, ("chat[].x",)),
        (
            {
                "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
                "systemInstruction": "s",
                "model": "g",
            },
            ("model",),
        ),
        (
            {
                "instructions": "s",
                "input": "q",
                "output": [{"type": "message", "role": "assistant", "content": "a"}],
                "model": "g",
            },
            ("model",),
        ),
    ],
)
def test_other_shapes_of_conversations_have_their_own_keys(row: dict[str, Any], ignored: tuple[str, ...]) -> None:
    assert ignored_keys(row, parse(row)[0]) == ignored
