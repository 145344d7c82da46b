"""Rows from JSON: lines of it, or a file that is one array, one object, or objects after each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading.compression import UTF_8_BOM, Consumed, ignore, lines
from llmft_cli.data.reading.json_text import DECODER, UNFINISHED, JsonText, RefusedValue, json_complaint
from llmft_cli.data.reading.rows import BadRow, Row, Source

# The objects of JSON lines open with their first key; those that are laid out over several lines, with a lone brace.
LINE_OF_AN_OBJECT = re.compile(r"^\{[ \t]*\S", re.MULTILINE)
WRAPPED_ROWS = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*\{')
# Lists under these keys belong to one row.
ROW_KEYS = {"messages", "conversations"}
# How much of a first object to read before it is taken for a wrapper of rows.
PATIENCE_CHARACTERS = 1 << 20


def read_jsonl(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """One row a line; blank lines are passed over.

    Raises:
        DataError: a line is too long, or the file as such cannot be read.
    """
    name, decode = source.name, DECODER.decode
    for line, raw in enumerate(lines(source, consumed), 1):
        if not raw or raw.isspace():
            continue
        try:
            yield Row(name, line, decode(raw.decode()))
        except (ValueError, RecursionError) as error:
            # Files that were joined have byte order marks between their lines.
            bare = raw.removeprefix(UTF_8_BOM)
            if bare == raw:
                yield BadRow(name, line, json_complaint(error))
            elif bare.strip():
                yield json_row(name, line, bare)


def json_row(name: str, line: int, raw: bytes) -> Row | BadRow:
    try:
        return Row(name, line, DECODER.decode(raw.decode()))
    except (ValueError, RecursionError) as error:
        return BadRow(name, line, json_complaint(error))


def read_json(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """An array of rows, an object that holds only such an array (`{"data": [...]}`), objects, or JSON lines.

    Raises:
        DataError: it is none of these; a broken array is refused whole, since its rows cannot be told apart.
    """
    shape = shape_of(source)
    if shape == "lines":
        yield from read_jsonl(source, consumed)
        return
    text = JsonText(source, consumed)
    text.peek()
    if shape == "wrapped":
        key = enter_wrapper(text)
        yield from array_rows(text)
        if text.peek() != "}":
            raise text.unexpected(f"Expecting nothing but the rows under {key!r}")
        text.skip(1)
    elif shape == "array":
        yield from array_rows(text)
    else:
        yield next_row(text)
        while text.peek() == "{":
            yield next_row(text)
    if text.peek():
        raise text.unexpected("Extra data")


def shape_of(source: Source) -> str:
    """How the rows of a JSON file stand in it: as `array`, `wrapped` array, `lines`, or `values` after each other.

    Raises:
        DataError: there is nothing in it, or nothing that is JSON.
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
        value = text.decode(PATIENCE_CHARACTERS if wrapped and wrapped[1] not in ROW_KEYS else None)
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
    """Go on to the array in an object that comes next, and give its key."""
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
    """Whether a value is an object with a list as its only content, and not itself a row."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((key, rows),) = value.items()
    return key not in ROW_KEYS and isinstance(rows, list)


def array_rows(text: JsonText) -> Iterator[Row | BadRow]:
    """The elements of the JSON array that comes next, each with the line it begins on."""
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
    """The value that comes next as a row.

    Raises:
        DataError: it is malformed, so that nothing behind it can be told apart.
    """
    line = text.line()
    try:
        return Row(text.source.name, line, text.decode())
    except RefusedValue as error:
        return BadRow(text.source.name, line, str(error))
    except (ValueError, RecursionError) as error:
        raise text.refusal(error) from error
