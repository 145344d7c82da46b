"""Cells that Python or numpy has printed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from llmft_cli.data.forms.examples import Conversation, RowError
from llmft_cli.data.forms.fields import decoded
from llmft_cli.data.forms.formats import parse
from llmft_cli.data.reading.python_literals import MOST_CHARACTERS

TURNS = [{"role": "user", "content": "It's ] 'x' ... nan array( \"q\"\n\\d"}, {"role": "assistant", "content": "a 'b' 'c'"}]


def as_objects(value: list[Any]) -> Any:
    array = np.empty(len(value), dtype=object)
    array[:] = value
    return array


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (str(TURNS), TURNS),
        (str(as_objects(TURNS)), TURNS),
        (repr(as_objects(TURNS)), TURNS),
        (str({"turns": as_objects(TURNS)}), {"turns": TURNS}),
        (str([tuple(TURNS)]), [TURNS]),
        (str(np.array(["a", "b 'c'"])), ["a", "b 'c'"]),
        ("{'a': True, 'b': None, 'c': 1.5, 'd': -2}", {"a": True, "b": None, "c": 1.5, "d": -2}),
        ("[{'a': nan}]", [{"a": None}]),
        ("array([], dtype=object)", []),
        (r"['\d']", ["\\d"]),
        ('["it\'s"]', ["it's"]),
        ("plain text", "plain text"),
        ("array of things", "array of things"),
    ],
)
def test_what_python_prints_is_read(text: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(text, "messages") == value


def test_a_conversation_in_a_cell() -> None:
    """A CSV file that pandas has written has the messages as Python's repr."""
    assert parse({"messages": str(TURNS)}) == ("messages", Conversation(TURNS))
    speech = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    answered = Conversation([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    assert parse({"conversations": str(as_objects(speech))}) == ("sharegpt", answered)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (str(as_objects([{"a": 1}] * 2000)), "messages is not a list or an object: numpy has left out a part of it (...)"),
        ("[{'a': {1}}]", "messages is not a list or an object: it contains a set"),
        ("[b'a']", "messages is not a list or an object: it contains a bytes"),
        ("{1: 'a'}", "messages is not a list or an object: it contains a dict"),
        ("[{'a'", "messages is not valid JSON: Expecting property name enclosed in double quotes at character 3"),
        ("[open('x')]", "messages is not valid JSON: Expecting value at character 2"),
        ("{'a': 'x' 'y'}", "messages is not valid JSON: Expecting property name enclosed in double quotes at character 2"),
        ("[" * 10_000 + "'", "messages is nested too deeply"),
        ("['" + "a" * MOST_CHARACTERS + "']", "messages is not valid JSON: Expecting value at character 2"),
    ],
)
def test_other_texts_are_refused(text: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        decoded(text, "messages")
    assert str(caught.value) == reason


def test_a_part_whose_type_is_a_list_is_refused() -> None:
    """A type that cannot be looked up used to end prepare."""
    row = {"messages": str([{"role": "user", "content": [{"type": ["text"], "text": "q"}]}, TURNS[1]])}
    with pytest.raises(RowError, match=r"^messages\[1\]\.content\[1\] has the type a list"):
        parse(row)
