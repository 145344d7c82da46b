"""Rows from JSON Lines, or from a JSON file with one array, one object or several objects."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from typing import Any

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading.compression import UTF_8_BOM, Consumed, ignore, lines
from llmft_cli.data.reading.json_text import DECODER, UNFINISHED, JsonText, RefusedValue, json_error_text
from llmft_cli.data.reading.rows import BadRow, Row, Source

# In JSON Lines the first key follows the brace; in a pretty-printed object the brace stands alone.
LINE_OF_AN_OBJECT = re.compile(r"^\{[ \t]*\S", re.MULTILINE)
WRAPPED_ROWS = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*\{')
# A list under one of these keys is part of a row, not a list of rows.
ROW_KEYS = {"messages", "conversations"}
# How much of the first object to read before treating it as a wrapper around rows.
WRAPPER_LOOKAHEAD_CHARACTERS = 1 << 20


def read_jsonl(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """One row per line; blank lines are skipped.

    Raises:
        DataError: a line is too long, or the file cannot be read.
    """
    name, decode = source.name, DECODER.decode
    for line, raw in enumerate(lines(source, consumed), 1):
        if not raw or raw.isspace():
            continue
        try:
            yield Row(name, line, decode(raw.decode()))
        except (ValueError, RecursionError) as error:
            # Concatenated files have byte order marks between their lines.
            bare = raw.removeprefix(UTF_8_BOM)
            if bare == raw:
                yield BadRow(name, line, json_error_text(error))
            elif bare.strip():
                yield json_row(name, line, bare)


def json_row(name: str, line: int, raw: bytes) -> Row | BadRow:
    try:
        return Row(name, line, DECODER.decode(raw.decode()))
    except (ValueError, RecursionError) as error:
        return BadRow(name, line, json_error_text(error))


def read_json(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """Rows of a JSON file: an array, an object with only an array (`{"data": [...]}`), several objects, or JSON Lines.

    Raises:
        DataError: it is none of these. A malformed array is rejected as a whole, since its rows cannot be separated.
    """
    structure = structure_of(source)
    if structure == "lines":
        yield from read_jsonl(source, consumed)
        return
    text = JsonText(source, consumed)
    text.peek()
    if structure == "wrapped":
        key = enter_wrapper(text)
        yield from array_rows(text)
        if text.peek() != "}":
            raise text.unexpected(f"Expecting only the rows under {reprlib.repr(key)}")
        text.skip(1)
    elif structure == "array":
        yield from array_rows(text)
    else:
        yield next_row(text)
        while text.peek() == "{":
            yield next_row(text)
    if text.peek():
        raise text.unexpected("Extra data")


def structure_of(source: Source) -> str:
    """How a JSON file holds its rows: `array`, `wrapped` (array in an object), `lines`, or `values` (one after another).

    Raises:
        DataError: the file is empty or not JSON.
    """
    text = JsonText(source)
    first = text.peek()
    if first == "[":
        return "array"
    if not first:
        raise DataError(f"{source.name} is empty")
    wrapped = WRAPPED_ROWS.match(text.text, text.position)
    start = text.line()
    value = None
    try:
        value = text.decode(WRAPPER_LOOKAHEAD_CHARACTERS if wrapped and wrapped[1] not in ROW_KEYS else None)
    except RefusedValue:
        pass
    except (ValueError, RecursionError) as error:
        if has_lines_of_objects(text):
            return "lines"
        raise text.refusal(error) from error
    if value is UNFINISHED:
        return "wrapped"
    end, in_lines = text.line(), has_lines_of_objects(text)
    if not text.peek():
        return "wrapped" if holds_only_rows(value) else "values"
    if first == "{" and start == end and (text.line() > end or in_lines):
        return "lines"
    return "values"


def enter_wrapper(text: JsonText) -> str:
    """Advance to the array inside the next object; returns its key."""
    text.skip(1)
    text.peek()
    key: str = text.decode()
    text.peek()
    text.skip(1)
    text.peek()
    return key


def has_lines_of_objects(text: JsonText) -> bool:
    return len(LINE_OF_AN_OBJECT.findall(text.text)) > 1


def holds_only_rows(value: Any) -> bool:
    """Whether a value is an object that contains only a list, and is not itself a row."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((key, rows),) = value.items()
    return key not in ROW_KEYS and isinstance(rows, list)


def array_rows(text: JsonText) -> Iterator[Row | BadRow]:
    """The elements of the next JSON array, each with the line it begins on."""
    text.skip(1)
    ended = text.peek() == "]"
    while not ended:
        yield next_row(text)
        following = text.peek()
        ended = following == "]"
        if following == ",":
            text.skip(1)
            if text.peek() == "]":
                comma = text.text.rfind(",", 0, text.position)
                raise text.malformed("Illegal trailing comma before end of array", text.place(max(comma, 0)))
        elif not ended:
            raise text.unexpected("Expecting ',' delimiter")
    text.skip(1)


def next_row(text: JsonText) -> Row | BadRow:
    """The next value as a row.

    Raises:
        DataError: it is malformed, so the rest of the file cannot be parsed.
    """
    line = text.line()
    try:
        return Row(text.source.name, line, text.decode())
    except RefusedValue as error:
        return BadRow(text.source.name, line, str(error))
    except (ValueError, RecursionError) as error:
        raise text.refusal(error) from error
