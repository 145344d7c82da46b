"""Keys of a whole row that change what it means: marks of rows not to be learned and of unwanted answers, and trees."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.learning_keys import (
    ROW_SWITCHES,
    ROW_WEIGHTS,
    refuse_excluded_row,
    row_said,
    said_by,
    shown_value,
)
from llmft_cli.data.forms.media_keys import media_keys
from llmft_cli.data.forms.token_rows import LEARNING_MASKS

# KTO's marks of an answer: true for a wanted one. A `label` of 0 is usually the number of a class.
KTO_LABEL = "label"
KTO_TAGS = ("kto_tag", "kto_label", "desirable", "is_desirable")
WANTED_KEYS = frozenset({KTO_LABEL, *KTO_TAGS})
LEARNING_KEYS = frozenset({*ROW_WEIGHTS, *ROW_SWITCHES})

# Roles of messages. A row of one message is no document, though it may have a `text`.
SPEAKERS = frozenset({"user", "assistant", "prompter", "human", "gpt", "bot", "chatbot", "model"})


class SpecialKeys(NamedTuple):
    """Those of a row's keys that can change what the row means."""

    media: tuple[str, ...]
    learning: tuple[str, ...]
    wanted: tuple[str, ...]


@lru_cache(maxsize=1024)
def special_keys(keys: tuple[str, ...]) -> SpecialKeys | None:
    """The special keys among those of a row, or None."""
    found = SpecialKeys(
        media_keys(keys),
        tuple(key for key in keys if key in LEARNING_KEYS),
        tuple(key for key in keys if key in WANTED_KEYS),
    )
    return found if any(found) else None


def refuse_unlearned(row: dict[str, Any], special: SpecialKeys, form: str) -> None:
    """Refuse a row that is marked as not to be learned, or whose answer is marked as unwanted.

    Args:
        form: the format of the row.

    Raises:
        RowError: it is.
    """
    # A row of token ids has masks by the same names.
    refuse_excluded_row(row, [key for key in special.learning if form != "tokens" or key not in LEARNING_MASKS])
    for key in special.wanted if form not in ("tokens", "text") else ():
        if says_unwanted(key, row[key]):
            raise RowError(f"{key} is {shown_value(row[key])}: the answer is unwanted")


def says_unwanted(key: str, value: Any) -> bool:
    if key == KTO_LABEL:
        return value is False or (isinstance(value, str) and value.strip().lower() == "false")
    return said_by(value) is False


def is_heeded(row: dict[str, Any], key: str) -> bool:
    """Whether a key of a conversation that was not refused has said that it is learned, or wanted."""
    if key in LEARNING_KEYS:
        return row_said(row, key) is not None
    if key == KTO_LABEL:
        return row[key] is True or (isinstance(row[key], str) and row[key].strip().lower() == "true")
    return key in KTO_TAGS and said_by(row[key]) is not None


def refuse_single_message(row: dict[str, Any]) -> None:
    """Refuse a row that is one message of a tree or of a conversation, or a whole tree.

    Raises:
        RowError: it is one.
    """
    if "message_tree_id" in row or ("parent_id" in row and "role" in row):
        raise RowError(
            "the row is part of a message tree, as of OpenAssistant, not a conversation: use a version of the data "
            "with whole conversations, or make a row of messages of each path from the root to a leaf"
        )
    role = row.get("role")
    if isinstance(role, str) and role in SPEAKERS:
        raise RowError(
            f"the row is a single message (role {role!r}), not a conversation: make a row of messages of each conversation"
        )
