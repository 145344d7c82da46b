"""Conversations that are not a list of turns with a speaker each: plain texts, pairs, lists for each key; and their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmft_cli.data.forms.conversations.gemini import CONTENTS, are_contents
from llmft_cli.data.forms.conversations.speakers import SPEAKER_KEYS, role_of
from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.fields import decoded, optional_text_of, text_of
from llmft_cli.data.forms.learning_keys import marks_of

# A row's conversation may be under one of these keys if it has neither `messages` nor `conversations`.
OTHER_KEYS = ("conversation", "chat", "dialog", "dialogue", "turns", "data")
UNUSUAL_KEYS = frozenset({CONTENTS, *OTHER_KEYS})
# Some datasets have only the questions there, as a list of texts.
QUESTIONS_ONLY = ("turns",)
# Objects there are rows, not turns.
TEXTS_ONLY = ("data",)
ALTERNATING = ("user", "assistant")
PAIRS = (
    ("input", "output"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("user", "assistant"),
    ("user", "bot"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
)


def other_key(row: dict[str, Any], beside_text: bool = False) -> str | None:
    """The key of a conversation that is not under the usual keys, or None.

    Args:
        beside_text: whether the row has a text, too, so that a list of texts may be anything.
    """
    if UNUSUAL_KEYS.isdisjoint(row):
        return None
    if are_contents(row.get(CONTENTS)):
        return CONTENTS
    return next((key for key in OTHER_KEYS if row.get(key) and holds_turns(row[key], key, beside_text)), None)


def holds_turns(value: Any, key: str, beside_text: bool) -> bool:
    """Whether a value is certainly a conversation."""
    try:
        items = decoded(value, key)
        turns = as_turns(items, key)
    except RowError:
        return False
    are_texts = isinstance(items, list) and bool(items) and isinstance(items[0], str)
    if (are_texts and (beside_text or key in QUESTIONS_ONLY)) or (not are_texts and key in TEXTS_ONLY):
        return False
    return is_list_of_turns(turns)


def is_list_of_turns(value: Any) -> bool:
    """Whether a value is a list that begins with a turn of a known speaker."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    speaker = next((value[0][key] for key in SPEAKER_KEYS if value[0].get(key) is not None), None)
    return isinstance(speaker, str) and role_of(speaker) is not None


def as_turns(value: Any, key: str) -> Any:
    """A conversation of any known shape as a list of turns; any other value as it is.

    Args:
        key: the place of the value, for error messages.

    Raises:
        RowError: an item is not what the first one is.
    """
    if isinstance(value, dict):
        return from_lists(value, key)
    if not isinstance(value, list) or not value:
        return value
    first = value[0]
    if isinstance(first, dict):
        return value if any(name in first for name in ("role", "from")) else from_objects(value, first, key)
    if len(value) > 1 and all(isinstance(item, str) for item in value):
        return from_json_texts(value) or alternating(value)
    if all(isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item) for item in value):
        return alternating([text for pair in value for text in pair])
    return value


def from_lists(value: dict[str, Any], key: str) -> Any:
    """Turns from an object with a list for each key, as Arrow and pandas write them; any other object as it is."""
    lists = {name: items for name, items in value.items() if items is not None}
    if not any(name in lists for name in SPEAKER_KEYS) or not all(isinstance(items, list) for items in lists.values()):
        return value
    if len({len(items) for items in lists.values()}) > 1:
        raise RowError(f"{key} has lists of different lengths: {', '.join(lists)}")
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def from_json_texts(texts: Sequence[str]) -> list[Any] | None:
    """Turns of which each is the JSON text of an object; None if the texts are anything else."""
    if not texts[0].lstrip().startswith("{"):
        return None
    try:
        turns = [decoded(text, "") for text in texts]
    except RowError:
        return None
    return turns if is_list_of_turns(turns) else None


def alternating(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Texts as turns of user and assistant in turn."""
    return [{"role": ALTERNATING[number % 2], "content": text} for number, text in enumerate(texts)]


def from_objects(value: list[Any], first: dict[str, Any], key: str) -> list[Any]:
    """Turns from pairs of a question and its answer, or from objects with a text under the name of its speaker."""
    pair = next((pair for pair in PAIRS if pair[0] in first and pair[1] in first), None)
    if pair:
        return [turn for number, item in enumerate(value, 1) for turn in turns_of_pair(item, pair, f"{key}[{number}]")]
    if all(isinstance(item, dict) and len(item) == 1 and role_of(next(iter(item))) for item in value):
        return [{"role": name, "content": text} for item in value for name, text in item.items()]
    return value


def turns_of_pair(item: Any, pair: tuple[str, str], where: str) -> list[dict[str, Any]]:
    """A question and its answer as turns, after a system message if the pair has one."""
    if not isinstance(item, dict) or not all(name in item for name in pair):
        raise RowError(f"{where} has not both {pair[0]} and {pair[1]}, as the first item has")
    for name in pair:
        text_of(item, name, where)
    system = optional_text_of(item, "system", where)
    turns = [{"role": role, "content": item[name]} for role, name in zip(ALTERNATING, pair, strict=True)]
    turns[1] |= marks_of(item)
    return [{"role": "system", "content": system}, *turns] if system else turns
