"""Reads texts and JSON values of a row; errors name the place of the value."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection
from itertools import islice
from typing import Any, NoReturn

from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.media_keys import refuse_media_part
from llmft_cli.data.reading.python_literals import NoLiteral, from_python

# A list or an object; numpy prints some lists as `array([...])`.
BEGINS_VALUE = re.compile(r"\s*(?:array\()?[\[{]")

MOST_KEYS = 8
TYPE_NAMES = {
    type(None): "null",
    bool: "true/false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    bytes: "binary data that is not UTF-8",
}


def type_name(value: Any) -> str:
    """The type of a value in plain words."""
    return "an empty list" if value == [] else TYPE_NAMES.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    """A number or a text (shortened in the middle if long) as it is; the type name of anything else."""
    return reprlib.repr(value) if type(value) in (int, float, str) else type_name(value)


def shown_key(key: str) -> str:
    """A key as it is if it is a plain name, else with quotes; shortened if long."""
    return key if key.isidentifier() and len(key) <= 40 else shown(key)


def shown_keys(keys: Collection[Any]) -> str:
    """The first few keys, and how many more there are."""
    named = ", ".join(shown(key) for key in islice(keys, MOST_KEYS))
    return f"{named} and {len(keys) - MOST_KEYS:,} more" if len(keys) > MOST_KEYS else named


def has_no_surrogates(text: str) -> bool:
    """Whether a text has no lone surrogates, which JSON can express but UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def valid_text(text: str, name: str) -> str:
    """Returns the text.

    Raises:
        RowError: it contains a lone surrogate.
    """
    if not has_no_surrogates(text):
        half = next(character for character in text if "\ud800" <= character <= "\udfff")
        raise RowError(f"{name} has a lone surrogate (\\u{ord(half):04x})")
    return text


def text_of(row: dict[str, Any], key: str, where: str = "") -> str:
    """A required text.

    Args:
        where: the place of `row`, for error messages.

    Raises:
        RowError: it is missing, not text, or has a lone surrogate.
    """
    text = row.get(key)
    if type(text) is str and text.isascii():
        return text
    name = f"{where}.{key}" if where else key
    if key not in row:
        raise RowError(f"{name} is missing")
    if not isinstance(text, str):
        raise RowError(f"{name} is {type_name(text)}, not text")
    return valid_text(text, name)


def optional_text_of(row: dict[str, Any], key: str, where: str = "") -> str:
    """An optional text; empty if it is missing, null or blank.

    Args:
        where: the place of `row`, for error messages.

    Raises:
        RowError: it is not text, or has a lone surrogate.
    """
    text = "" if row.get(key) is None else text_of(row, key, where)
    return text if text.strip() else ""


def content_of(turn: dict[str, Any], key: str, where: str) -> str:
    """A message's text, also if it is a list of parts (`[{"type": "text", "text": ...}]`).

    Raises:
        RowError: it is missing, or not text.
    """
    parts = turn.get(key)
    if not isinstance(parts, list) or not parts:
        return text_of(turn, key, where)
    texts = []
    for number, value in enumerate(parts, 1):
        place = f"{where}.{key}[{number}]" if where else f"{key}[{number}]"
        part = object_at(value, place)
        refuse_media_part(part, place)
        if part.get("type") != "text":
            raise RowError(f"{place} has the type {shown(part.get('type'))}; only 'text' is supported")
        # LLaMA-Factory has the text under `value`.
        texts.append(text_of(part, "value" if part.get("text") is None and "value" in part else "text", place))
    return "".join(texts)


def object_at(value: Any, where: str) -> dict[str, Any]:
    """Returns the object.

    Raises:
        RowError: the value is not an object.
    """
    if not isinstance(value, dict):
        raise RowError(f"{where} is {type_name(value)}, not an object")
    return value


def from_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        RowError: it is not valid JSON (NaN and Infinity are not).
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{where} is not valid JSON: {error.msg} at character {error.pos + 1}") from error
    except ValueError as error:
        # NaN or Infinity, or a number with more digits than Python reads.
        raise RowError(f"{where} is not valid JSON: {str(error).partition(':')[0]}") from error
    except RecursionError as error:
        raise RowError(f"{where} is nested too deeply") from error


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def decoded(value: Any, where: str) -> Any:
    """A value, decoded if it is a list or object in JSON or as Python prints it, as in the cells of a CSV file.

    Raises:
        RowError: a text that begins like a list or object is neither.
    """
    if not isinstance(value, str) or not BEGINS_VALUE.match(value):
        return value
    try:
        return from_json(value, where)
    except RowError as refusal:
        try:
            return from_python(value)
        except NoLiteral as error:
            raise RowError(f"{where} is not a list or an object: {error}") from error
        except ValueError:
            raise refusal from None


def to_json(value: Any, where: str) -> str:
    """A value as JSON text.

    Raises:
        RowError: it cannot be represented in JSON, or a text in it has a lone surrogate.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise RowError(f"{where} cannot be written as JSON: {error}") from error
    except ValueError as error:
        raise RowError(f"{where} cannot be written as JSON: it contains a non-finite number") from error
    except RecursionError as error:
        raise RowError(f"{where} is nested too deeply") from error
    return valid_text(text, where)


def without_nulls(value: Any, where: str) -> Any:
    """A value without null keys: in a column of objects, Arrow gives each object the keys of all.

    Raises:
        RowError: it is nested too deeply.
    """

    def cleaned(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: cleaned(item) for key, item in part.items() if item is not None}
        return [cleaned(item) for item in part] if isinstance(part, list) else part

    try:
        return cleaned(value)
    except RecursionError as error:
        raise RowError(f"{where} is nested too deeply") from error
