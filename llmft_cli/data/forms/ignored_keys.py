"""The keys of a row that its format does not read: they are counted and told, so that none is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

from llmft_cli.data.forms.columns import renamed
from llmft_cli.data.forms.examples import THINKING_KEYS
from llmft_cli.data.forms.fields import decoded
from llmft_cli.data.forms.flat_forms import has_schemas, keys_of_pair
from llmft_cli.data.forms.formats import SYSTEM, TOOLS
from llmft_cli.data.forms.learning_keys import MESSAGE_KEYS, has_longer_turns
from llmft_cli.data.forms.media_keys import is_given, media_in
from llmft_cli.data.forms.messages import key_of_turns
from llmft_cli.data.forms.token_rows import LEARNING_MASKS, PADDING_MASK
from llmft_cli.data.forms.unsupported_keys import LEARNING_KEYS, WANTED_KEYS, is_heeded

# What each format reads beside the keys of `used_keys`.
READ_BESIDE: dict[str, frozenset[str]] = {
    "messages": SYSTEM | TOOLS,
    "sharegpt": SYSTEM | TOOLS,
    "alpaca": SYSTEM | {"instruction", "input", "output", "history"},
    "prompt-completion": SYSTEM | {"prompt", "completion"},
    "question-answer": SYSTEM | {"context", "history"},
    "text": frozenset(),
    "tokens": frozenset({"input_ids", "labels", PADDING_MASK, *LEARNING_MASKS}),
}
# What is read of a message, by its role.
READ_OF_MESSAGE: dict[str, frozenset[str]] = {
    "assistant": frozenset({"role", "content", "tool_calls", "function_call", *THINKING_KEYS}) | MESSAGE_KEYS,
    "tool": frozenset({"role", "content", "tool_call_id", "name"}) | MESSAGE_KEYS,
    "function": frozenset({"role", "content", "tool_call_id", "name"}) | MESSAGE_KEYS,
}
READ_OF_OTHER_MESSAGES = frozenset({"role", "content"}) | MESSAGE_KEYS
READ_OF_SHAREGPT_TURN = frozenset({"from", "value", "tool_call_id", "name"}) | MESSAGE_KEYS
# Kinds of unread keys: media may be empty, and a mark of a row (`weight`, `label`) may have been heeded.
MEDIUM, MARK = "medium", "mark"
LONGEST_SHOWN = 60


def ignored_keys(row: dict[str, Any], form: str, columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The keys of a row that have a value and are not read, by the source's names.

    Args:
        row: as read, and parsed without an error.
        form: its format.
        columns: as of `formats.parse`.

    Returns:
        Keys of the row, and those of its messages as `messages[].key`.
    """
    ours = renamed(row, columns) if columns else row
    used, lists = used_keys(ours, form)
    found = [key for key, kind in unread_keys(form, used, tuple(ours)) if has_value(ours, key, kind)]
    if columns:
        in_part = {theirs.partition(".")[0] for theirs in columns.values()}
        found = [columns.get(key, key) for key in found if key in columns or key not in in_part]
    for key in lists:
        turns = decoded(ours[key], key)
        if has_longer_turns(turns):
            name = columns.get(key, key) if columns else key
            found += [f"{name}[].{inner}" for inner in ignored_in_turns(turns)]
    return tuple(dict.fromkeys(map(shortened, found))) if found else ()


def used_keys(row: dict[str, Any], form: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that a format has read of this very row where it has a choice, and those with messages."""
    if form == "messages":
        key = key_of_turns(row, "messages", "conversations")
        return (key,), (key,)
    if form == "sharegpt":
        key = key_of_turns(row, "conversations", "messages")
        return (key,), (key,)
    if form == "prompt-completion":
        turns = tuple(key for key in ("prompt", "completion") if isinstance(row[key], list))
        return tuple(TOOLS) if turns or has_schemas(row) else (), turns
    if form == "alpaca":
        return tuple(TOOLS) if has_schemas(row) else (), ()
    if form == "question-answer":
        pair = keys_of_pair(row)
        return (*pair, "input") if pair[0] == "instruction" else pair, ()
    return ("text" if "text" in row else "content",) if form == "text" else (), ()


@lru_cache(maxsize=1024)
def unread_keys(form: str, used: tuple[str, ...], keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of a row's keys that its format does not read, each with its kind for `has_value`.

    A key without a name is left out: it is the index that pandas writes.
    """
    read = READ_BESIDE[form].union(used)
    marks = frozenset() if form in ("text", "tokens") else WANTED_KEYS
    return tuple((key, kind_of(key, marks | LEARNING_KEYS)) for key in keys if key and key not in read)


@lru_cache(maxsize=1024)
def unread_keys_of_turn(role: str, keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of a message's keys that are not read, each with its kind for `has_value`.

    Args:
        role: empty for a sharegpt turn.
    """
    read = READ_OF_MESSAGE.get(role, READ_OF_OTHER_MESSAGES) if role else READ_OF_SHAREGPT_TURN
    return tuple((key, kind_of(key)) for key in keys if key not in read)


def kind_of(key: str, marks: Set[str] = frozenset()) -> str:
    return MARK if key in marks else MEDIUM if media_in(key) else ""


def has_value(values: dict[str, Any], key: str, kind: str) -> bool:
    """Whether an unread key has a value that nothing has heeded."""
    value = values[key]
    if kind == MEDIUM:
        return is_given(value)
    if value is None or value == "" or value == [] or value == {}:
        return False
    return not kind or not is_heeded(values, key)


def ignored_in_turns(turns: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of messages that have a value and are not read, each once."""
    found: dict[str, None] = {}
    for turn in turns:
        for key, kind in unread_keys_of_turn(turn.get("role") or "", tuple(turn)) if len(turn) > 2 else ():
            if key not in found and has_value(turn, key, kind):
                found[key] = None
    return list(found)


def shortened(key: str) -> str:
    return key if len(key) <= LONGEST_SHOWN else f"{key[:LONGEST_SHOWN]}..."
