"""Unwanted answers and single messages of trees are refused in every format."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, USER, reason_of, talk

from llmft_cli.data.forms.formats import Document, parse

TREE = (
    "the row is part of a message tree, as of OpenAssistant, not a conversation: use a version of the data "
    "with whole conversations, or make a row of messages of each path from the root to a leaf"
)


@pytest.mark.parametrize(
    "row",
    [
        talk(USER, ANSWER),
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
    ],
)
def test_unwanted_answers_are_refused_in_every_format(row: dict[str, Any]) -> None:
    """A KTO row with `label: false` or `kto_tag: false` was learned unless it had a prompt and a completion."""
    assert reason_of({**row, "label": False}) == "label is false: the answer is unwanted"
    assert reason_of({**row, "label": "False"}) == "label is 'False': the answer is unwanted"
    assert reason_of({**row, "kto_tag": 0}) == "kto_tag is 0: the answer is unwanted"
    assert reason_of({**row, "desirable": False}) == "desirable is false: the answer is unwanted"
    for wanted in ({"label": True}, {"label": 0}, {"label": None}, {"label": "news"}, {"kto_tag": "true"}):
        assert parse({**row, **wanted}) == parse(row)


def test_the_class_of_a_document_is_no_mark() -> None:
    assert parse({"text": "t", "label": False}) == ("text", Document("t"))


@pytest.mark.parametrize(
    "row",
    [
        {"message_id": "a", "parent_id": None, "text": "hi", "role": "prompter", "message_tree_id": "t"},
        {"message_id": "b", "parent_id": "a", "text": "hello", "role": "assistant"},
        {"parent_id": None, "role": "user", "content": "hi"},
        {"message_tree_id": "t", "tree_state": "ready", "prompt": {"text": "hi", "role": "prompter", "replies": []}},
    ],
)
def test_message_trees_are_no_documents(row: dict[str, Any]) -> None:
    """Each message of OpenAssistant's trees became a raw document."""
    assert reason_of(row) == TREE


def test_single_messages_are_no_documents() -> None:
    reason = "the row is a single message (role 'user'), not a conversation: make a row of messages of each conversation"
    assert reason_of({"role": "user", "text": "hi"}) == reason
    assert reason_of({"role": "user", "content": "hi"}) == reason


def test_what_the_user_calls_a_document_is_one() -> None:
    row = {"role": "prompter", "parent_id": None, "text": "hi"}
    assert parse(row, "text") == ("text", Document("hi"))
    assert parse({**row, "body": "x"}, "auto", {"text": "body"}) == ("text", Document("x"))
    assert parse({"role": "editor", "text": "hi"}) == ("text", Document("hi"))
