"""Recognises rows that compare answers (preference data), and the columns that train on the better one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.fields import decoded, shown_key
from llmft_cli.data.forms.flat_forms import USUAL_ANSWERS

# The better side's word in a key, and the worse one's in the same place.
SIDES = (
    ("chosen", "rejected"),
    ("accepted", "rejected"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("better", "worse"),
    ("winner", "loser"),
)
# Of two answers with these endings, the first is the better one.
RANKED_ENDINGS = (("_j", "_k"),)
# Which of these is the better one is said elsewhere in the row.
COMPARED_ENDINGS = (("_a", "_b"), ("_A", "_B"))
NUMBERED = re.compile(r"(.*(?:answer|response|completion|output|reply|generation).*?)(0|1)")
LISTS_OF_ANSWERS = ("completions", "generations", "responses", "answers")
RATING = re.compile(r"rating|score|rank|annotation", re.IGNORECASE)
CONVERSATIONS = ("messages", "conversations", "conversation")
OTHER_QUESTIONS = ("user_input", "history", "context", "post")


def pair_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """The keys of the better and the worse answer of a row, if its keys say which is which."""
    for better, worse in (*SIDES, *((better.title(), worse.title()) for better, worse in SIDES)):
        for key in row:
            other = key.replace(better, worse)
            if better in key and other != key and is_answer(row[key]) and is_answer(row.get(other)):
                return key, other
    return pair_with(row, RANKED_ENDINGS)


def pair_with(row: dict[str, Any], endings: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    for first, second in endings:
        for key in row:
            other = key.removesuffix(first) + second
            if key.endswith(first) and is_answer(row[key]) and is_answer(row.get(other)):
                return key, other
    return None


def is_answer(value: Any) -> bool:
    return isinstance(value, str | list | dict)


def comparison_in(row: dict[str, Any]) -> str:
    """What in a row is compared without a key that says which is better; empty if nothing is."""
    numbered = (match for key in row if isinstance(key, str) and (match := NUMBERED.fullmatch(key)))
    pairs = ((match[0], f"{match[1]}{int(match[2]) + 1}") for match in numbered)
    pair = pair_with(row, COMPARED_ENDINGS) or next(
        (pair for pair in pairs if all(is_answer(row.get(key)) for key in pair)), None
    )
    if pair:
        return f"{shown_key(pair[0])} and {shown_key(pair[1])} are two answers to compare"
    for key in LISTS_OF_ANSWERS:
        answers = row.get(key)
        if isinstance(answers, list) and len(answers) > 1:
            rated = answers[0] if isinstance(answers[0], dict) else row
            if any(RATING.search(str(name)) for name in rated):
                return f"{key} has {len(answers)} rated answers to one prompt"
    return ""


def columns_for_chosen(row: dict[str, Any], chosen: str) -> Iterator[dict[str, str]]:
    """The columns that may make a conversation of the better side, most likely first."""
    value = decoded_or_text(row[chosen])
    turns = value if isinstance(value, list) else []
    # Some have the whole conversation on both sides, including the question.
    if turns and isinstance(turns[0], dict) and speaker_of(turns[0]) not in ("assistant", "gpt"):
        yield {"messages": chosen}
        yield {"conversations": chosen}
    for question, answer in USUAL_ANSWERS.items():
        if row.get(question) is not None:
            yield {answer: chosen}
    for question in (*CONVERSATIONS, *OTHER_QUESTIONS):
        if row.get(question) is not None:
            yield {"prompt": question, "completion": chosen}
    yield {"text" if isinstance(value, str) else "messages": chosen}


def speaker_of(turn: dict[str, Any]) -> Any:
    return turn.get("role", turn.get("from"))


def decoded_or_text(value: Any) -> Any:
    """A list or object in JSON text, or the value as it is."""
    try:
        return decoded(value, "")
    except RowError:
        return value
