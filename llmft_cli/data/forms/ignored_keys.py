"""The keys of a row that its format does not read: they are counted and told, so that none is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

from llmft_cli.data.forms.columns import renamed
from llmft_cli.data.forms.conversations.gemini import CONTENTS, INSTRUCTIONS
from llmft_cli.data.forms.conversations.responses import is_response
from llmft_cli.data.forms.conversations.shapes import PAIRS, as_turns
from llmft_cli.data.forms.conversations.speakers import role_of, speaker_key, text_key
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
# What is read of a message beside its speaker and its text, by its role.
READ_OF_ANSWER = frozenset({"tool_calls", "function_call", *THINKING_KEYS})
READ_OF_RESULT = frozenset({"tool_call_id", "name"})
READ_OF_ANY_MESSAGE = MESSAGE_KEYS | {"parts"}
# What is read of an object of a question and its answer.
READ_OF_PAIR = frozenset({"system", *(key for pair in PAIRS for key in pair)})
READ_OF_RESPONSE = ("input", "output", "instructions", *TOOLS)
# Kinds of unread keys: media may be empty, and a mark of a row (`weight`, `label`) may have been heeded.
MEDIUM, MARK = "medium", "mark"
LONGEST_SHOWN = 60


def ignored_keys(row: dict[str, Any] | list[Any], form: str, columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The keys of a row that have a value and are not read, by the source's names.

    Args:
        row: as read, and parsed without an error; a list is one of messages.
        form: its format.
        columns: as of `formats.parse`.

    Returns:
        Keys of the row, and those of its messages as `messages[].key`.
    """
    row = {"messages": row} if isinstance(row, list) else row
    ours = renamed(row, columns) if columns else row
    used, lists = used_keys(ours, form)
    found = [key for key, kind in unread_keys(form, used, tuple(ours)) if has_value(ours, key, kind)]
    if columns:
        in_part = {theirs.partition(".")[0] for theirs in columns.values()}
        found = [columns.get(key, key) for key in found if key in columns or key not in in_part]
    for key in lists:
        turns = decoded(ours[key], key)
        turns = as_turns(turns, key) if isinstance(turns, dict) else turns  # an object with a list for each key
        if isinstance(turns, list) and isinstance(turns[0], dict) and has_longer_turns(turns):
            name = columns.get(key, key) if columns else key
            found += [f"{name}[].{inner}" for inner in ignored_in_turns(turns)]
    return tuple(dict.fromkeys(map(shortened, found))) if found else ()


def used_keys(row: dict[str, Any], form: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that a format has read of this very row where it has a choice, and those with messages."""
    if form == "messages":
        key = key_of_turns(row, "messages", "conversations")
        return (key, *INSTRUCTIONS) if key == CONTENTS else (key,), (key,)
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
        if pair == ("input", "output") and is_response(row):
            return READ_OF_RESPONSE, ()
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
def unread_keys_of_turn(speaker: str, text: str, role: str | None, keys: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of a message's keys that are not read, each with its kind for `has_value`.

    Args:
        speaker, text: the keys of the message's speaker and of its text.
    """
    if "role" not in keys and "from" not in keys:
        own = READ_OF_PAIR
    else:
        own = READ_OF_ANSWER if role == "assistant" else READ_OF_RESULT if role == "tool" else frozenset()
    read = READ_OF_ANY_MESSAGE | own | {speaker, text}
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
        if len(turn) > 2:
            speaker = speaker_key(turn, "role")
            role = role_of(said) if isinstance(said := turn.get(speaker), str) else None
            for key, kind in unread_keys_of_turn(speaker, text_key(turn, speaker), role, tuple(turn)):
                if key not in found and has_value(turn, key, kind):
                    found[key] = None
    return list(found)


def shortened(key: str) -> str:
    return key if len(key) <= LONGEST_SHOWN else f"{key[:LONGEST_SHOWN]}..."
