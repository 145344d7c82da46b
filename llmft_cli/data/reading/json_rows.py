"""Rows from JSON Lines, or from a JSON file with one value or several."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from typing import Any

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading.column_names import check_names, known_names
from llmft_cli.data.reading.compression import UTF_8_BOM, Consumed, ignore, lines
from llmft_cli.data.reading.json_layouts import Layout, holds_rows, is_message, layout_of, unwrapped
from llmft_cli.data.reading.json_text import DECODER, UNFINISHED, JsonText, RefusedValue, json_error_text, utf_8_error_text
from llmft_cli.data.reading.rows import BadRow, Row, Source, UndecodableText

# In JSON Lines the first key follows the brace; in a pretty-printed object the brace stands alone.
LINE_OF_AN_OBJECT = re.compile(r"^\{[ \t]*\S", re.MULTILINE)
# How much of the first value to read to see how it holds rows.
LOOKAHEAD_CHARACTERS = 1 << 20
MALFORMED = object()


def read_jsonl(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """One row per line; blank lines are skipped.

    Raises:
        UndecodableText: a line is not UTF-8, and nothing says that the file is.
        DataError: a line is too long, or the file cannot be read.
    """
    name, decode = source.name, DECODER.decode
    for line, raw in enumerate(lines(source, consumed), 1):
        if not raw or raw.isspace():
            continue
        try:
            yield Row(name, line, decode(raw.decode()))
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError) and not source.encoding:
                raise UndecodableText(f"{name} line {line}: {utf_8_error_text(error)}") from error
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
    """Rows of a JSON file: an array, an object around the rows, a table, several values, or JSON Lines.

    Raises:
        DataError: it is none of these. A malformed array is rejected as a whole, since its rows cannot be separated.
    """
    layout = layout_of_file(source)
    if layout.kind == "lines":
        yield from read_jsonl(source, consumed)
        return
    text = JsonText(source, consumed)
    text.peek()
    if layout.kind == "wrapped":
        yield from unwrapped(wrapped_rows(text, layout.key))
    elif layout.kind == "array":
        yield from unwrapped(array_rows(text))
    elif layout.kind == "keyed":
        yield from (next_row(text) for _ in member_names(text))
    elif layout.kind == "split":
        yield from split_rows(text)
    elif layout.kind == "columns":
        yield from column_rows(text)
    else:
        yield next_row(text)
        while text.peek() in ("{", "["):
            yield next_row(text)
    if text.peek():
        raise text.unexpected("Extra data")


def layout_of_file(source: Source) -> Layout:
    """How a JSON file holds its rows: a layout of `json_layouts`, `array`, `lines`, or `values` (one after another).

    Raises:
        DataError: the file is empty, not JSON, or its rows have no names or several lists.
    """
    text = JsonText(source)
    first = text.peek()
    if first == "[":
        return layout_of_array(text)
    if not first:
        raise DataError(f"{source.name} is empty")
    start = text.line()
    value = next_value(text, LOOKAHEAD_CHARACTERS)
    layout = None
    if value is UNFINISHED:
        layout = layout_of(text.beginning())
        value = None if layout else next_value(text)
    if value is MALFORMED:
        return Layout("lines")
    if not layout:
        end, in_lines = text.line(), has_lines_of_objects(text)
        if text.peek():
            one_a_line = first == "{" and start == end and (text.line() > end or in_lines)
            return Layout("lines" if one_a_line else "values")
        layout = layout_of(value) if isinstance(value, dict) else None
    if layout and layout.kind == "splits":
        raise DataError(f"{source.name} holds several lists of rows: {layout.key}", "write each of them to a file of its own")
    return layout or Layout("values")


def next_value(text: JsonText, limit_characters: int | None = None) -> Any:
    """The first value of a file, `UNFINISHED` as of `decode`, or `MALFORMED` if that is the fault of one of many lines.

    Raises:
        DataError: it is malformed.
    """
    try:
        return text.decode(limit_characters)
    except RefusedValue:
        return None
    except (ValueError, RecursionError) as error:
        if has_lines_of_objects(text):
            return MALFORMED
        raise text.refusal(error) from error


def layout_of_array(text: JsonText) -> Layout:
    """`values` for an array that is one conversation, else `array`.

    Raises:
        DataError: its rows are lists of cells.
    """
    text.skip(1)
    try:
        text.peek()
        first = text.decode(LOOKAHEAD_CHARACTERS)
    except (ValueError, RecursionError):
        return Layout("array")  # which tells what is wrong
    first = text.beginning() if first is UNFINISHED else first
    if isinstance(first, list) and first and not isinstance(first[0], dict | list):
        raise DataError(
            f"{text.source.name} holds rows without names of columns: {reprlib.repr(first)}",
            "write it with names, in pandas: to_json(FILE, orient='records', lines=True)",
        )
    return Layout("values" if is_message(first) else "array")


def has_lines_of_objects(text: JsonText) -> bool:
    return len(LINE_OF_AN_OBJECT.findall(text.text)) > 1


def wrapped_rows(text: JsonText, key: str) -> Iterator[Row | BadRow]:
    """The rows in the list under a key of the next object; what describes them is left out.

    Raises:
        DataError: the object is malformed, or there are rows under another key, too.
    """
    for name in member_names(text):
        if name == key and text.peek() == "[":
            yield from array_rows(text)
        elif holds_rows(name, member(text)):
            raise DataError(
                f"{text.source.name} holds rows under {reprlib.repr(key)} and under {reprlib.repr(name)}",
                "write each of them to a file of its own",
            )


def split_rows(text: JsonText) -> Iterator[Row | BadRow]:
    """The rows of a table with the names of its columns and a list of cells for each row."""
    names: list[str] = []
    for name in member_names(text):
        if name == "columns":
            names = column_names(text, [str(column) for column in member(text)])
        elif name == "data":
            for row in array_rows(text):
                cells = row.value if isinstance(row, Row) else None
                if isinstance(cells, list) and len(cells) == len(names):
                    yield row._replace(value=dict(zip(names, cells, strict=True)))  # type: ignore[union-attr]
                else:
                    yield BadRow(row.source, row.line, f"a row must be a list of {len(names)} cells, one for each column")
        else:
            member(text)


def column_rows(text: JsonText) -> Iterator[Row | BadRow]:
    """The rows of a table with a list or an object of cells for each column; the whole table is in memory."""
    columns = {name: member(text) for name in member_names(text)}
    names = column_names(text, list(columns))
    index = {key: None for column in columns.values() if isinstance(column, dict) for key in column}
    filled = [[column.get(key) for key in index] if isinstance(column, dict) else column for column in columns.values()]
    if len({len(column) if isinstance(column, list) else -1 for column in filled}) != 1:
        raise DataError(f"{text.source.name} has columns of different lengths", "write one object for each row")
    for number, cells in enumerate(zip(*filled, strict=True), 1):
        yield Row(text.source.name, number, dict(zip(names, cells, strict=True)))


def column_names(text: JsonText, names: list[str]) -> list[str]:
    check_names(text.source.name, names)
    return known_names(names, text.source.columns)


def member_names(text: JsonText) -> Iterator[str]:
    """The names of the next object's members; whoever takes one reads the value, which is next, before taking another.

    Raises:
        DataError: the object is malformed.
    """
    text.skip(1)
    following = text.peek()
    while following != "}":
        if following != '"':
            raise text.unexpected("Expecting property name enclosed in double quotes")
        name = member(text)
        if text.peek() != ":":
            raise text.unexpected("Expecting ':' delimiter")
        text.skip(1)
        text.peek()
        yield name
        following = text.peek()
        if following == ",":
            text.skip(1)
            following = text.peek() if text.peek() != "}" else ","
        elif following != "}":
            raise text.unexpected("Expecting ',' delimiter")
    text.skip(1)


def member(text: JsonText) -> Any:
    """The next value.

    Raises:
        DataError: it is malformed.
    """
    try:
        return text.decode()
    except (ValueError, RecursionError) as error:
        raise text.refusal(error) from error


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
