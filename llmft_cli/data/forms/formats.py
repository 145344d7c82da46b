"""The forms in which people keep training rows, brought to one of three: conversation, document, token ids.

Forms: OpenAI-style messages, sharegpt conversations, alpaca, prompt and completion, question and
answer, raw text, token ids. Each row's form is recognised by its own keys, so a file may mix them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from llmft_cli.data.forms.columns import COLUMNS, parse_columns, renamed
from llmft_cli.data.forms.examples import Conversation, Document, Example, Message, RowError, Tokenised
from llmft_cli.data.forms.fields import decoded, kind_of, text_of
from llmft_cli.data.forms.flat_forms import (
    QUESTIONS_AND_ANSWERS,
    parse_alpaca,
    parse_prompt_completion,
    parse_question_answer,
    parse_text,
)
from llmft_cli.data.forms.messages import check_order, messages_of, parse_messages, parse_sharegpt, turns_of
from llmft_cli.data.forms.token_rows import LEARNING_MASKS, PADDING_MASK, parse_tokens

__all__ = [
    "Conversation",
    "Document",
    "Example",
    "Message",
    "RowError",
    "Tokenised",
    "parse",
    "parse_columns",
    "parse_prompt_messages",
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
# Forms in the order in which they are looked for, by the keys that a row of the form has, and those that it may have.
FORMS: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    ("tokens", frozenset({"input_ids"}), frozenset({"labels", PADDING_MASK, *LEARNING_MASKS})),
    ("messages", frozenset({"messages"}), SYSTEM | TOOLS),
    ("sharegpt", frozenset({"conversations"}), SYSTEM | TOOLS),
    ("alpaca", frozenset({"instruction", "output"}), SYSTEM | {"input", "history"}),
    ("prompt-completion", frozenset({"prompt", "completion"}), SYSTEM | TOOLS),
    *(("question-answer", frozenset(pair), SYSTEM | {"context", "input"}) for pair in QUESTIONS_AND_ANSWERS),
    (PREFERENCE, frozenset({"chosen", "rejected"}), frozenset()),
    ("text", frozenset({"text"}), frozenset()),
)
# What answers a question, for rows that have two answers to choose from.
CHOSEN_ANSWERS = {"prompt": "completion", "instruction": "output", "question": "answer", "query": "response", "input": "output"}
# In a table these cells are empty texts or lists where a row is of another form.
LISTS = ("input_ids", "messages", "conversations")
# Beside one of these a `content` is not a document.
BESIDE_CONTENT = frozenset(COLUMNS) | {"role", "from", "chosen", "rejected"}


def parse(value: Any, form: str = "auto", columns: Mapping[str, str] | None = None) -> tuple[str, Example]:
    """The form of a row and its content.

    Args:
        value: the row as read, an object with texts, lists and numbers as JSON has them.
        form: a name of `PARSERS`, or auto to recognise it by the row's keys.
        columns: the row's own names of columns by ours, as `parse_columns` reads them.

    Raises:
        RowError: it cannot be used, and why.
    """
    if not isinstance(value, dict):
        raise RowError(f"a row must be an object, not {kind_of(value)}")
    row = renamed(value, columns) if columns else value
    name = recognise(row, columns or {}) if form == "auto" else form
    return name, PARSERS[name](row)


def recognise(row: dict[str, Any], columns: Mapping[str, str]) -> str:
    """The form of a row, by its keys; one that has a use for all `columns` comes first.

    Raises:
        RowError: it has none of the known forms, or is a pair of preferences.
    """
    # A table has every column in every row: where a form's keys are null, look for another form first.
    given = {key for key, cell in row.items() if cell is not None and (key not in LISTS or cell)}
    named = given.intersection(columns)
    form = form_with(given, row, named) or form_with(given, row) or form_with(row.keys(), row)
    if form is None:
        keys = ", ".join(map(repr, row))
        raise RowError(f"no known form has the keys {keys}" if keys else "the object is empty")
    if form == PREFERENCE:
        raise RowError(
            "chosen and rejected are a pair of preferences, which is not trained on here; "
            f"--columns {column_for_chosen(row)}=chosen learns the chosen side"
        )
    return form


def form_with(keys: Set[str], row: dict[str, Any], named: Set[str] = frozenset()) -> str | None:
    """The first form that has all it needs in `keys`, and a use for all of `named`."""
    for form, wanted, others in FORMS:
        if keys >= wanted and (not named or named <= wanted | others):
            return form_of_turns(row, form) if form in ("messages", "sharegpt") else form
    return "text" if "content" in keys and not keys & BESIDE_CONTENT else None


def form_of_turns(row: dict[str, Any], usual: str) -> str:
    """The form of a conversation by its first turn: either form has been seen under the usual key of the other."""
    turn = first_turn(row, "messages" if usual == "messages" else "conversations")
    if turn.get("role") is not None:
        return "messages"
    return "sharegpt" if turn.get("from") is not None else usual


def first_turn(row: dict[str, Any], key: str) -> dict[str, Any]:
    """The first turn of a conversation, or an empty one where there is none."""
    turns = decoded(row[key], key)
    return turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}


def column_for_chosen(row: dict[str, Any]) -> str:
    """Our name for the chosen side, under which a row of preferences becomes one to learn from."""
    chosen = row["chosen"]
    # Some have the whole conversation on either side, the question too.
    if isinstance(chosen, list) and chosen and isinstance(chosen[0], dict) and chosen[0].get("role") != "assistant":
        return "messages"
    alone = "text" if isinstance(chosen, str) else "messages"
    return next((answer for question, answer in CHOSEN_ANSWERS.items() if row.get(question) is not None), alone)


def parse_prompt_messages(value: Any) -> list[Message]:
    """The messages of a prompt to answer: `messages` that end with the user's, or a text `prompt`.

    Raises:
        RowError: it is neither.
    """
    if not isinstance(value, dict):
        raise RowError(f"a prompt must be an object, not {kind_of(value)}")
    if "messages" not in value:
        return [{"role": "user", "content": text_of(value, "prompt")}]
    messages = messages_of(turns_of(value, "messages"), "messages")
    check_order([*messages, {"role": "assistant", "content": "an answer"}])
    return messages
