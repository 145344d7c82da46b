"""Keys that say what is learned: of a message, and of a whole row.

`weight` is OpenAI's and Mistral's, `loss_weight` LLaMA-Factory's, `loss` and `loss_scale` are ms-swift's, `train` and
`train_detail` axolotl's, `trainable` is Tinker's, `output_with_loss` XTuner's. An answer is learned whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from llmft_cli.data.forms.examples import Message, RowError
from llmft_cli.data.forms.fields import shown, type_name

# 1 or true: the answer is learned.
LEARNED = (
    "weight",
    "loss_weight",
    "loss_scale",
    "loss",
    "loss_mask",
    "compute_loss",
    "train",
    "training",
    "do_train",
    "trainable",
    "is_trainable",
    "output_with_loss",
)
# 1 or true: the answer is not learned.
MASKED = ("masked", "is_masked")
# Tools differ in whether 1 means learned.
AMBIGUOUS = ("mask",)
# Characters of the answer from `begin_offset` through `end_offset`, each learned or not.
DETAILS = ("train_detail", "training_detail")
MESSAGE_KEYS = frozenset((*LEARNED, *MASKED, *AMBIGUOUS, *DETAILS))

# Weights of a whole row. A column `weight` may be a weight in kilograms, so numbers above 1 are not weights of the loss.
ROW_WEIGHTS = ("weight", "loss_weight", "loss_scale", "sample_weight")
ROW_SWITCHES = ("loss", "compute_loss", "train", "training", "do_train", "trainable", "is_trainable", *MASKED)

WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def said_by(value: Any) -> bool | None:
    """True or false as files spell it (true, 1, 1.0, "True"), or None if the value is neither."""
    if isinstance(value, str):
        return WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def is_unset(value: Any) -> bool:
    """Whether a key's value says nothing, as in a table whose cells are empty."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "null", "none", "nan")
    return value is None or value != value


def shown_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else shown(value)


@lru_cache(maxsize=1024)
def message_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a message's keys that say whether it is learned."""
    return tuple(key for key in keys if key in MESSAGE_KEYS)


def marks_of(turn: dict[str, Any]) -> dict[str, Any]:
    """What a message or a pair of another shape says of learning, to be part of its turn."""
    return {key: turn[key] for key in message_keys(tuple(turn))}


def has_longer_turns(turns: Sequence[dict[str, Any]]) -> bool:
    """Whether any message has more than a role and a content."""
    for turn in turns:  # noqa: SIM110 - a loop takes half the time of any()
        if len(turn) > 2:
            return True
    return False


def learned_messages(turns: Sequence[dict[str, Any]], messages: Sequence[Message], key: str) -> list[bool] | None:
    """For each message whether it is supervised (answers are by default), or None if no answer says.

    Args:
        turns: the messages as read.
        key: the place of the list, for error messages.

    Raises:
        RowError: a message is to be learned in part, or is not an answer, or its keys contradict each other.
    """
    if not has_longer_turns(turns):
        return None
    said = said_of_messages(turns, messages, key)
    if all(flag is None for flag in said):
        return None
    return [message["role"] == "assistant" and flag is not False for message, flag in zip(messages, said, strict=True)]


def said_of_messages(turns: Sequence[dict[str, Any]], messages: Sequence[Message], key: str) -> list[bool | None]:
    """For each answer whether its keys say that it is learned (True), not learned (False) or nothing (None).

    Raises:
        RowError: as `learned_messages`.
    """
    said: list[bool | None] = []
    for number, (turn, message) in enumerate(zip(turns, messages, strict=True), 1):
        names = message_keys(tuple(turn))
        flag = None
        if len(names) == 1 and names[0] in LEARNED and turn[names[0]] in (0, 1):  # true and false, too
            flag = bool(turn[names[0]])
        elif names:
            flag = learning_of(turn, names, f"{key}[{number}]")
        if message["role"] != "assistant":
            if flag:
                marks = ", ".join(name for name in names if not is_unset(turn[name]))
                raise RowError(f"{key}[{number}] is marked to be learned ({marks}), but only answers can be")
            flag = None
        said.append(flag)
    return said


def learning_of(turn: dict[str, Any], names: Sequence[str], where: str) -> bool | None:
    """Whether a message is marked to be learned (True), not to be learned (False), or not at all (None)."""
    set_names = [key for key in names if not is_unset(turn[key])]
    said: dict[str, bool | None] = {key: switch_of(turn[key], key, where) for key in set_names if key not in DETAILS}
    for key in set_names:
        if key in DETAILS and (turn[key] != [] or not said):
            said[key] = spans_of(turn, key, f"{where}.{key}")
    flags = {flag for flag in said.values() if flag is not None}
    if len(flags) > 1:
        raise RowError(f"{where} is both included in and excluded from training ({', '.join(said)})")
    if None in said.values() and False not in flags:
        raise RowError(f"{where} is to be learned in part ({', '.join(said)}), but an answer is learned whole or not at all")
    return next(iter(flags), None)


def switch_of(value: Any, key: str, where: str) -> bool:
    """Whether a key says that its message is learned."""
    flag = said_by(value)
    if flag is None:
        expected = "not true, false, 0 or 1: an answer is learned whole or not at all"
        raise RowError(f"{where}.{key} is {shown_value(value)}, {expected}")
    if key in AMBIGUOUS:
        raise RowError(f"{where}.{key} may mean learned or not learned: write weight, 1 for learned and 0 for not")
    return flag != (key in MASKED)


def spans_of(turn: dict[str, Any], key: str, place: str) -> bool | None:
    """Whether the spans at `key` cover the whole message (True), nothing of it (False) or a part (None).

    Raises:
        RowError: they are malformed, or the message is not a text.
    """
    spans = turn[key]
    if not isinstance(spans, list):
        raise RowError(f"{place} is {type_name(spans)}, not a list of spans")
    text = next((turn[name] for name in ("content", "value", "text", "message") if isinstance(turn.get(name), str)), "")
    if spans and not text:
        raise RowError(f"{place} has spans of a message that is not a text")
    learned = bytearray(len(text))
    for number, span in enumerate(spans, 1):
        part = learned_part(span, f"{place}[{number}]", len(text))
        learned[part] = b"\1" * len(learned[part])
    return False if not any(learned) else True if all(learned) else None


def learned_part(span: Any, place: str, length: int) -> slice:
    """The characters of a text that a span has learned; none if it is not learned.

    Args:
        length: of the text.
    """
    if not isinstance(span, dict):
        raise RowError(f"{place} is {type_name(span)}, not an object")
    begin, end, flag = span.get("begin_offset"), span.get("end_offset"), said_by(span.get("train"))
    if type(begin) is not int or type(end) is not int or begin < 0 or end < 0 or flag is None:
        raise RowError(f"{place} needs begin_offset and end_offset, whole numbers, and train, true or false")
    return slice(begin, min(end + 1, length)) if flag else slice(0)


def refuse_excluded_row(row: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse a row that is not to be learned, or only in part.

    Args:
        names: those of the row's keys that are in `ROW_WEIGHTS` or `ROW_SWITCHES`.

    Raises:
        RowError: it is not, or not fully.
    """
    for key in names:
        if (flag := row_said(row, key)) is None:
            continue
        if flag == (key in MASKED):
            raise RowError(f"the row is excluded from training ({key} is {shown_value(row[key])})")


def row_said(row: dict[str, Any], key: str) -> bool | None:
    """Whether a key says that the row is learned; None if it says nothing of it.

    Raises:
        RowError: it gives the row a weight between 0 and 1, or one that is not a number.
    """
    value = row[key]
    if is_unset(value):
        return None
    flag = said_by(value)
    if flag is not None or key in ROW_SWITCHES:
        return flag
    number = number_in(value)
    if key == "weight" and (number is None or not 0 < number < 1):
        return None
    raise RowError(f"{key} is {shown_value(value)}, but a row is learned whole (1) or not at all (0)")


def number_in(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
