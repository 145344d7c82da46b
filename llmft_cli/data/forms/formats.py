"""The formats of training rows, each converted to a conversation, a document or token ids.

Formats: OpenAI-style messages, sharegpt conversations, alpaca, prompt and completion, question and
answer, raw text, token ids. Each row's format is detected from its keys, so a file may mix them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Set
from typing import Any

from llmft_cli.data.forms.columns import COLUMNS, parse_columns, renamed
from llmft_cli.data.forms.conversations.merging import merged
from llmft_cli.data.forms.conversations.shapes import as_turns, is_list_of_turns, other_key
from llmft_cli.data.forms.examples import Conversation, Document, Example, Message, RowError, Tokenised
from llmft_cli.data.forms.fields import decoded, shown_key, shown_keys, type_name
from llmft_cli.data.forms.flat_forms import (
    QUESTIONS_AND_ANSWERS,
    parse_alpaca,
    parse_prompt_completion,
    parse_question_answer,
    parse_text,
    parse_text_or_rendered,
)
from llmft_cli.data.forms.media_keys import refuse_media
from llmft_cli.data.forms.messages import parse_messages, parse_sharegpt
from llmft_cli.data.forms.preferences import columns_for_chosen, comparison_in, decoded_or_text, pair_of, speaker_of
from llmft_cli.data.forms.token_rows import LEARNING_MASKS, PADDING_MASK, parse_tokens
from llmft_cli.data.forms.unsupported_keys import refuse_single_message, refuse_unlearned, special_keys

__all__ = [
    "Conversation",
    "Document",
    "Example",
    "Message",
    "RowError",
    "Tokenised",
    "parse",
    "parse_columns",
]

PARSERS: dict[str, Callable[[dict[str, Any]], Example]] = {
    "messages": parse_messages,
    "sharegpt": parse_sharegpt,
    "alpaca": parse_alpaca,
    "prompt-completion": parse_prompt_completion,
    "question-answer": parse_question_answer,
    "text": parse_text,
    "tokens": parse_tokens,
}
PREFERENCE = "preference"
SYSTEM = frozenset({"system", "system_prompt"})
TOOLS = frozenset({"tools", "functions"})
# Formats in the order of detection, each with its required and its optional keys.
FORMS: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    ("tokens", frozenset({"input_ids"}), frozenset({"labels", PADDING_MASK, *LEARNING_MASKS})),
    ("messages", frozenset({"messages"}), SYSTEM | TOOLS),
    ("sharegpt", frozenset({"conversations"}), SYSTEM | TOOLS),
    ("alpaca", frozenset({"instruction", "output"}), SYSTEM | TOOLS | {"input", "history"}),
    ("prompt-completion", frozenset({"prompt", "completion"}), SYSTEM | TOOLS),
    *(("question-answer", frozenset(pair), SYSTEM | {"context", "input", "history"}) for pair in QUESTIONS_AND_ANSWERS),
    (PREFERENCE, frozenset({"chosen", "rejected"}), frozenset()),
    ("text", frozenset({"text"}), frozenset()),
)
# In a table these cells are empty texts or lists in rows of another format.
LISTS = ("input_ids", "messages", "conversations")
# A row with one of these keys and `content` is not a document.
BESIDE_CONTENT = frozenset(COLUMNS) | {"role", "from", "chosen", "rejected"}


def parse(
    value: Any, form: str = "auto", columns: Mapping[str, str] | None = None, merge_turns: bool = False
) -> tuple[str, Example]:
    """The format of a row and its content.

    A text that a chat template has rendered is a conversation, unless `form` says that it is a document.

    Args:
        value: the row as read, an object of JSON values; or the list of messages alone.
        form: a key of `PARSERS`, or auto to detect it from the row's keys.
        columns: the source's column names by known name, as from `parse_columns`.
        merge_turns: whether to join neighbouring messages of the same role.

    Raises:
        RowError: the row cannot be used.
    """
    if type(value) is list and is_list_of_turns(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise RowError(f"a row must be an object, not {type_name(value)}")
    row = renamed(value, columns) if columns else value
    special = special_keys(tuple(row))
    if special:
        refuse_media(row, special.media)
    name = recognise(row, columns or {}) if form == "auto" else form
    if special:
        refuse_unlearned(row, special, name)
    example = parse_text_or_rendered(row) if name == "text" and form == "auto" else PARSERS[name](row)
    return name, merged(example) if merge_turns and isinstance(example, Conversation) else example


def recognise(row: dict[str, Any], columns: Mapping[str, str]) -> str:
    """The format of a row, by its keys; formats that use all `columns` come first.

    Raises:
        RowError: the format is unknown, or the row is a preference pair or a single message.
    """
    # A table has every column in every row: a format whose keys are null comes last.
    not_null = {key for key, cell in row.items() if cell is not None and (key not in LISTS or cell)}
    named = not_null.intersection(columns)
    form = form_with(not_null, row, named) or form_with(not_null, row)
    if (form is None or (form == "text" and not named)) and other_key(row, beside_text=form is not None):
        return "messages"
    form = form or form_with(row.keys(), row)
    if form in (None, "text") and "text" not in columns:
        refuse_single_message(row)
    if form in ("messages", "sharegpt") and "chosen" in not_null and is_unanswered(row) and pair_of(row):
        form = PREFERENCE
    if form is None or form == PREFERENCE:
        raise RowError(why_unusable(row, columns))
    return form


def is_unanswered(row: dict[str, Any]) -> bool:
    """Whether the last turn of a conversation is the user's, as in preference rows with both answers beside it."""
    turns = decoded_or_text(row.get("messages") or row.get("conversations"))
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, dict) and speaker_of(last) in ("user", "human")


def why_unusable(row: dict[str, Any], columns: Mapping[str, str]) -> str:
    """Why a row has no format; names preference data, and the columns that train on the better answer."""
    if not row:
        return "the object is empty"
    if pair := pair_of(row):
        reason = f"{shown_key(pair[0])} and {shown_key(pair[1])} are a preference pair, which llmft cannot train on"
        found = next((others for others in columns_for_chosen(row, pair[0]) if is_readable(row, others)), None)
        if found is None:
            return reason
        flag = shlex.join(["--columns", ",".join(f"{ours}={theirs}" for ours, theirs in {**columns, **found}.items())])
        return f"{reason}; {flag} trains on the {'chosen' if 'chosen' in pair[0] else 'better'} side"
    if compared := comparison_in(row):
        return f"{compared}, which llmft cannot train on; keep the best one of each row as its completion"
    return f"no known format has the keys {shown_keys(row)}"


def is_readable(row: dict[str, Any], columns: Mapping[str, str]) -> bool:
    try:
        parse(row, "auto", columns)
    except RowError:
        return False
    return True


def form_with(keys: Set[str], row: dict[str, Any], named: Set[str] = frozenset()) -> str | None:
    """The first format whose required keys are in `keys` and that uses all of `named`."""
    for form, wanted, others in FORMS:
        if keys >= wanted and (not named or named <= wanted | others):
            return form_of_turns(row, form) if form in ("messages", "sharegpt") else form
    return "text" if "content" in keys and not keys & BESIDE_CONTENT else None


def form_of_turns(row: dict[str, Any], usual: str) -> str:
    """The format of a conversation by its first turn: both formats occur under the other's usual key."""
    turn = first_turn(row, "messages" if usual == "messages" else "conversations")
    if turn.get("role") is not None:
        return "messages"
    return "sharegpt" if turn.get("from") is not None else usual


def first_turn(row: dict[str, Any], key: str) -> dict[str, Any]:
    """The first turn of a conversation, or an empty one."""
    turns = row[key]
    if type(turns) is not list or not turns or type(turns[0]) is not dict:
        turns = as_turns(decoded(turns, key), key)
    return turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
