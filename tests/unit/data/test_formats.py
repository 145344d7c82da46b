from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.data.formats import Conversation, Document, RowError, parse, parse_prompt_messages

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def messages(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        ({"messages": [SYSTEM, USER, ANSWER]}, "messages", [SYSTEM, USER, ANSWER]),
        ({"messages": [{**USER, "name": "x", "weight": 0}, ANSWER], "id": 7}, "messages", [USER, ANSWER]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}, "messages", [USER, ANSWER]),
        (
            {"messages": [{"role": "system", "content": ""}, USER, ANSWER]},
            "messages",
            [{**SYSTEM, "content": ""}, USER, ANSWER],
        ),
        ({"conversations": [USER, ANSWER]}, "messages", [USER, ANSWER]),
        ({"messages": None, "conversations": [USER, ANSWER]}, "messages", [USER, ANSWER]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "sharegpt",
            [SYSTEM, USER, ANSWER],
        ),
        (
            {"conversations": [{"from": "user", "value": "q"}, {"from": "bot", "value": "a"}], "system": None},
            "sharegpt",
            [USER, ANSWER],
        ),
        ({"instruction": "q", "output": "a"}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "input": "", "output": "a", "text": "all"}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "input": None, "output": "a", "system": " "}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "input": " \n", "output": "a"}, "alpaca", [USER, ANSWER]),
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s"},
            "alpaca",
            [SYSTEM, {**USER, "content": "q\n\ni"}, ANSWER],
        ),
        ({"prompt": "q", "completion": "a"}, "prompt-completion", [USER, ANSWER]),
        ({"instruction": None, "output": None, "prompt": "q", "completion": "a"}, "prompt-completion", [USER, ANSWER]),
    ],
)
def test_conversations_of_every_form(row: Any, form: str, expected: Any) -> None:
    assert parse(row) == (form, Conversation(expected))


def test_a_text_is_a_document() -> None:
    assert parse({"text": " a\0 "}) == ("text", Document(" a\0 "))
    assert parse({"text": "t", "prompt": "q", "completion": "a"}, "text") == ("text", Document("t"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a", "a row must be an object, not text"),
        (1, "a row must be an object, not a number"),
        (None, "a row must be an object, not null"),
        (True, "a row must be an object, not true/false"),
        ([], "a row must be an object, not an empty list"),
        ([USER], "a row must be an object, not a list"),
        ({}, "the object is empty"),
        ({"instruction": "q", "\ud800": 1}, "no known form has the keys 'instruction', '\\ud800'"),
        ({"messages": None}, "messages must be a list with messages, not null"),
        ({"messages": []}, "messages must be a list with messages, not an empty list"),
        ({"messages": {}}, "messages must be a list with messages, not an object"),
        ({"messages": ["a"]}, "messages[1] is text, not an object"),
        ({"messages": [USER, None]}, "messages[2] is null, not an object"),
        ({"messages": [{"content": "q"}]}, "messages[1].role is missing"),
        ({"messages": [{"role": "user"}, ANSWER]}, "messages[1].content is missing"),
        ({"messages": [{"role": 1, "content": "q"}]}, "messages[1].role is a number, not text"),
        (messages(("tool", "x")), "messages[1] has the unknown role 'tool'"),
        (messages(("user", []), ("assistant", "a")), "messages[1].content is an empty list, not text"),
        (messages(("user", ["a"]), ("assistant", "a")), "messages[1].content[1] is text, not an object"),
        (messages(("user", [{"type": "text"}]), ("assistant", "a")), "messages[1].content[1].text is missing"),
        (
            messages(("user", "\udc00"), ("assistant", "a")),
            "messages[1].content has half a character (\\udc00 without its other half)",
        ),
        (messages(("user", "q"), ("assistant", None)), "messages[2].content is null, not text"),
        (messages(("user", "q")), "there is no assistant turn to learn from"),
        (messages(("system", "s")), "there is no assistant turn to learn from"),
        (messages(("assistant", "a"), ("user", "q")), "message 1 is from assistant where user should speak"),
        (messages(("system", "s"), ("assistant", "a")), "message 2 is from assistant where user should speak"),
        (
            messages(("system", "s"), ("system", "s"), ("user", "q"), ("assistant", "a")),
            "message 2 is from system where user should speak",
        ),
        (messages(("user", "q"), ("user", "q"), ("assistant", "a")), "message 2 is from user where assistant should speak"),
        (messages(("system", "s"), ("user", " \n"), ("assistant", "a")), "message 2 (user) is empty"),
        (messages(("user", "q"), ("assistant", "")), "message 2 (assistant) is empty"),
        (
            messages(("user", "q"), ("assistant", "a"), ("user", "r")),
            "the last message is from user, with no answer to learn from",
        ),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "conversations[1] is from the unknown speaker 'tool'"),
        ({"conversations": [{"value": "x"}]}, "conversations[1].from is missing"),
        ({"conversations": [{"from": "human", "value": 3}]}, "conversations[1].value is a number, not text"),
        ({"conversations": "x"}, "conversations must be a list with messages, not text"),
        ({"instruction": "q", "input": 3, "output": "a"}, "input is a number, not text"),
        ({"instruction": "q", "output": None}, "output is null, not text"),
        ({"prompt": ["q"], "completion": "a"}, "prompt is a list, not text"),
        ({"text": "\u2003\n"}, "text is empty"),
        ({"text": "\ud83d"}, "text has half a character (\\ud83d without its other half)"),
        ({"question": "q", "answer": "a"}, "no known form has the keys 'question', 'answer'"),
    ],
)
def test_why_a_row_cannot_be_used(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(row)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("messages", "messages is missing"),
        ("sharegpt", "conversations is missing"),
        ("alpaca", "instruction is missing"),
        ("prompt-completion", "prompt is missing"),
        ("text", "text is missing"),
    ],
)
def test_a_row_of_another_form_than_was_said(form: str, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        parse({"a": "b"}, form)
    with pytest.raises(RowError, match=r"^a row must be an object, not a list$"):
        parse(["a"], form)


def test_prompts() -> None:
    assert parse_prompt_messages({"prompt": "q", "expected": "a"}) == [USER]
    assert parse_prompt_messages({"messages": [SYSTEM, USER, ANSWER, USER]}) == [SYSTEM, USER, ANSWER, USER]
    for value, reason in [
        ("q", "a prompt must be an object, not text"),
        ({"question": "q"}, "prompt is missing"),
        ({"messages": [USER, ANSWER]}, "message 3 is from assistant where user should speak"),
        ({"messages": [SYSTEM]}, "message 2 is from assistant where user should speak"),
    ]:
        with pytest.raises(RowError) as caught:
            parse_prompt_messages(value)
        assert str(caught.value) == reason
