"""The values within a row: texts and JSON, read with the name of their place for the reason why one cannot be used."""

from __future__ import annotations

import json
import reprlib
from typing import Any, NoReturn

from llmft_cli.data.forms.examples import RowError

KINDS = {
    type(None): "null",
    bool: "true/false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def kind_of(value: Any) -> str:
    """What a value is, in a user's words."""
    return "an empty list" if value == [] else KINDS.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    """A number or a short text as it is, a long text cut in its middle, and of anything else its kind."""
    return reprlib.repr(value) if type(value) in (int, float, str) else kind_of(value)


def is_whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can spell but which is no character and has no UTF-8 form."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole(text: str, name: str) -> str:
    """The text itself.

    Raises:
        RowError: it has half a character.
    """
    if not is_whole(text):
        half = next(character for character in text if "\ud800" <= character <= "\udfff")
        raise RowError(f"{name} has half a character (\\u{ord(half):04x} without its other half)")
    return text


def text_of(row: dict[str, Any], key: str, where: str = "") -> str:
    """A text that must be there.

    Args:
        where: the place of `row` itself, for the reason.

    Raises:
        RowError: it is missing, no text, or has half a character.
    """
    text = row.get(key)
    if type(text) is str and text.isascii():
        return text
    name = f"{where}.{key}" if where else key
    if key not in row:
        raise RowError(f"{name} is missing")
    if not isinstance(text, str):
        raise RowError(f"{name} is {kind_of(text)}, not text")
    return whole(text, name)


def optional_text_of(row: dict[str, Any], key: str, where: str = "") -> str:
    """A text that may be missing, null or blank: then it is empty.

    Args:
        where: the place of `row` itself, for the reason.

    Raises:
        RowError: it is no text, or has half a character.
    """
    text = "" if row.get(key) is None else text_of(row, key, where)
    return text if text.strip() else ""


def content_of(turn: dict[str, Any], key: str, where: str) -> str:
    """A message's text, also where it comes in parts (`[{"type": "text", "text": ...}]`).

    Raises:
        RowError: it is missing, or no text.
    """
    parts = turn.get(key)
    if not isinstance(parts, list) or not parts:
        return text_of(turn, key, where)
    texts = []
    for number, value in enumerate(parts, 1):
        place = f"{where}.{key}[{number}]"
        part = object_at(value, place)
        if part.get("type") != "text":
            raise RowError(f"{place} is of the type {shown(part.get('type'))}, and only 'text' can be used")
        texts.append(text_of(part, "text", place))
    return "".join(texts)


def object_at(value: Any, where: str) -> dict[str, Any]:
    """The object itself.

    Raises:
        RowError: it is none.
    """
    if not isinstance(value, dict):
        raise RowError(f"{where} is {kind_of(value)}, not an object")
    return value


def from_json(text: str, where: str) -> Any:
    """What a JSON text says.

    Raises:
        RowError: it is not valid JSON, of which NaN and Infinity are no part.
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{where} is not valid JSON: {error.msg} at character {error.pos + 1}") from error
    except ValueError as error:
        # A constant that is refused here, or a number of more digits than Python reads.
        raise RowError(f"{where} is not valid JSON: {str(error).partition(':')[0]}") from error
    except RecursionError as error:
        raise RowError(f"{where} is nested too deeply") from error


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def decoded(value: Any, where: str) -> Any:
    """A list or object, also where it is JSON text, as the cells of a CSV file hold it; any other value as it is.

    Raises:
        RowError: a text that begins like a list or object is not valid JSON.
    """
    return from_json(value, where) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


def to_json(value: Any, where: str) -> str:
    """A value as JSON text.

    Raises:
        RowError: JSON cannot hold it, or a text in it has half a character.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise RowError(f"{where} cannot be written as JSON: {error}") from error
    except ValueError as error:
        raise RowError(f"{where} cannot be written as JSON: it has a number that is not finite") from error
    except RecursionError as error:
        raise RowError(f"{where} is nested too deeply") from error
    return whole(text, where)


def without_nulls(value: Any, where: str) -> Any:
    """A value without the keys that are null: in a column of objects, Arrow gives each the keys of all.

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
