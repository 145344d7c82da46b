from __future__ import annotations

import re
from typing import Any

import pytest

from llmft_cli.base.errors import ConfigError
from llmft_cli.data.forms.columns import COLUMNS
from llmft_cli.data.forms.formats import Conversation, Document, RowError, parse, parse_columns

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def test_columns_are_read_in_order() -> None:
    assert parse_columns("prompt=question") == {"prompt": "question"}
    assert parse_columns(" prompt = The question ,completion=answer.text") == {
        "prompt": " The question ",
        "completion": "answer.text",
    }
    assert parse_columns("text=a=b") == {"text": "a=b"}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "'' is not name=column", "write --columns prompt=question,completion=answer"),
        ("prompt", "'prompt' is not name=column", "write --columns prompt=question,completion=answer"),
        ("prompt=a,", "'' is not name=column", "write --columns prompt=question,completion=answer"),
        ("prompt=", "'prompt=' is not name=column", "write --columns prompt=question,completion=answer"),
        ("prompt=a, =b", "'=b' is not name=column", "write --columns prompt=question,completion=answer"),
        ("promt=a", "'promt' in 'promt=a' is not a known column", "did you mean prompt?"),
        ("prompt=a,xyz=b", "'xyz' in 'xyz=b' is not a known column", f"known columns: {', '.join(COLUMNS)}"),
        ("prompt=a,prompt=b", "prompt is named twice, as a and as b", "keep one of them"),
    ],
)
def test_malformed_columns(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"^--columns: {re.escape(message)}$") as caught:
        parse_columns(text)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"ask": "q", "say": "a"}, "prompt=ask,completion=say", ("prompt-completion", Conversation([USER, ANSWER]))),
        ({"ask": "q", "answer": "a"}, "question=ask", ("question-answer", Conversation([USER, ANSWER]))),
        ({"output": "q", "input": "a"}, "input=output,output=input", ("question-answer", Conversation([USER, ANSWER]))),
        (
            {"ask": "q", "reply": {"text": {"en": "a"}}},
            "prompt=ask,completion=reply.text.en",
            ("prompt-completion", Conversation([USER, ANSWER])),
        ),
        ({"ask": "q", "reply.en": "a"}, "prompt=ask,completion=reply.en", ("prompt-completion", Conversation([USER, ANSWER]))),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "completion=chosen",
            ("prompt-completion", Conversation([USER, ANSWER])),
        ),
        ({"chosen": [USER, ANSWER], "rejected": []}, "messages=chosen", ("messages", Conversation([USER, ANSWER]))),
        # Named columns take precedence over the row's other keys.
        (
            {"ask": "q", "say": "a", "instruction": "x", "output": "y", "messages": [USER]},
            "prompt=ask,completion=say",
            ("prompt-completion", Conversation([USER, ANSWER])),
        ),
        (
            {"instruction": "q", "hint": "i", "say": "a", "prompt": "x", "completion": "y"},
            "input=hint,output=say",
            ("alpaca", Conversation([{**USER, "content": "q\n\ni"}, ANSWER])),
        ),
        (
            {"chat": [USER, ANSWER], "input_ids": [5, 6]},
            "messages=chat",
            ("messages", Conversation([USER, ANSWER])),
        ),
        ({"body": "t", "question": "q", "answer": "a"}, "text=body", ("text", Document("t"))),
        ({"body": None, "question": "q", "answer": "a"}, "text=body", ("question-answer", Conversation([USER, ANSWER]))),
        ({"body": "t", "text": "u"}, "text=body", ("text", Document("t"))),
    ],
)
def test_rows_under_other_names(row: dict[str, Any], columns: str, expected: Any) -> None:
    before = dict(row)
    assert parse(row, "auto", parse_columns(columns)) == expected
    assert row == before


def test_columns_with_a_form() -> None:
    row = {"body": "t", "prompt": "q", "completion": "a"}
    assert parse(row, "text", {"text": "body"}) == ("text", Document("t"))
    assert parse(row, "auto", {}) == ("prompt-completion", Conversation([USER, ANSWER]))


@pytest.mark.parametrize(
    ("row", "columns", "reason"),
    [
        ({"prompt": "q"}, "prompt=ask", "the column ask for prompt is missing"),
        ({"ask": {}}, "prompt=ask.text", "the column ask.text for prompt is missing"),
        ({"ask": {"a": "b"}}, "prompt=ask.a.b", "the column ask.a.b for prompt is missing: ask.a is text, not an object"),
        ({"ask": [{"a": "b"}]}, "prompt=ask.0.a", "the column ask.0.a for prompt is missing: ask is a list, not an object"),
        ({"ask": "q", "say": None}, "prompt=ask,completion=say", "completion is null, not text"),
        ({"ask": "q"}, "prompt=ask", "no known format has the keys 'prompt'"),
        ("q", "prompt=ask", "a row must be an object, not text"),
    ],
)
def test_rows_without_a_named_column(row: Any, columns: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(row, "auto", parse_columns(columns))
    assert str(caught.value) == reason
