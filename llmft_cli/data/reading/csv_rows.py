"""Rows from CSV and TSV files."""

from __future__ import annotations

import csv
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading import compression
from llmft_cli.data.reading.column_names import KNOWN, check_names, known_names
from llmft_cli.data.reading.compression import UTF_8_BOM, Consumed, check_length, ignore, lines_with_ends
from llmft_cli.data.reading.json_text import NOT_UTF_8, utf_8_error_text
from llmft_cli.data.reading.rows import BadRow, Row, Source, UndecodableText

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHER_SEPARATORS = (",", ";", "\t", "|")
COLUMN_NAME_CHARACTERS = 200
HEADER_CURE = "the first line of a table names its columns, such as prompt,completion"
# What ends a sentence, or begins a list or an object, does not name a column.
DATA = re.compile(r"[.?!\u3002\uff01\uff1f]\s*$|^\s*[\[{]|\n|^.{80}")


@dataclass
class Record:
    """The CSV record being read.

    Attributes:
        line: first line.
        last_line: last line read so far.
        size_bytes: size of the lines read so far.
        problem: why its text cannot be used; empty if it can.
    """

    line: int = 1
    last_line: int = 0
    size_bytes: int = 0
    problem: str = ""

    def begin(self) -> None:
        self.line, self.size_bytes, self.problem = self.last_line + 1, 0, ""


def read_csv(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """Rows as objects with the header's names. `line` is where a row begins: quoted cells may contain line breaks.

    Raises:
        DataError: the header cannot be used, or a quote is never closed and swallows the rows after it.
    """
    csv.field_size_limit(2 * compression.MAX_ROW_BYTES)
    record = Record()
    separator, spaced = separator_of(source)
    lines = text_lines(source, record, consumed)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=spaced, strict=True)
    header: list[str] = []
    names: list[str] = []
    while True:
        record.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                raise DataError(f"{source.name} line {record.line}: a quote is never closed") from error
            swallowed = f" (the row runs to line {record.last_line})" if record.last_line > record.line else ""
            yield BadRow(source.name, record.line, f"malformed CSV: {error}{swallowed}")
            continue
        if not cells:
            continue
        if not header:
            header, names = cells, names_of(source, record, cells)
        elif problem := record.problem or row_problem(cells, header):
            yield BadRow(source.name, record.line, problem)
        else:
            yield Row(source.name, record.line, dict(zip(names, cells, strict=True)))


def row_problem(cells: Sequence[str], header: Sequence[str]) -> str:
    if len(cells) != len(header):
        return f"has {len(cells)} columns, the header has {len(header)}"
    return "repeats the header" if cells == header else ""


def text_lines(source: Source, record: Record, consumed: Consumed) -> Iterator[str]:
    """A file's lines as text; problems are noted in the record that the line belongs to."""
    for line, raw in enumerate(lines_with_ends(source, consumed), 1):
        bare = raw.removeprefix(UTF_8_BOM)
        record.last_line = line
        record.size_bytes += len(bare)
        check_length(source, record.line, record.size_bytes)
        place = f" on line {line}" if line > record.line else ""
        if b"\0" in bare:
            record.problem = f"NUL byte in column {bare.index(0) + 1}{place}"
        try:
            yield bare.decode()
        except UnicodeDecodeError as error:
            if not source.encoding:
                raise UndecodableText(f"{source.name} line {line}: {utf_8_error_text(error)}") from error
            record.problem = utf_8_error_text(error) + place
            # The record is rejected: this only finds where it ends.
            yield bare.decode(errors="replace")


def separator_of(source: Source) -> tuple[str, bool]:
    """What separates the columns, and whether a space follows it: as in the first line, else as the file type has it."""
    own = SEPARATORS[source.suffix]
    lines = (line.removeprefix(UTF_8_BOM) for line in lines_with_ends(source))
    first = next((line for line in lines if line.strip()), b"").decode(errors="replace")
    for separator in (own, *OTHER_SEPARATORS):
        names = next(csv.reader([first], delimiter=separator), [])
        if len(names) > 1:
            return separator, all(name.startswith(" ") for name in names[1:])
    return own, False


def names_of(source: Source, record: Record, header: Sequence[str]) -> list[str]:
    """The names of the columns, by the first line.

    Raises:
        DataError: it does not name every column.
    """
    where = f"{source.name} line {record.line}"
    if record.problem:
        kind = UndecodableText if record.problem.startswith(NOT_UTF_8) else DataError
        raise kind(f"{where}: header: {record.problem}")
    # pandas leaves the name of its index column empty.
    for number, name in enumerate(header, 1):
        if number > 1 and not name.strip():
            raise DataError(f"{where}: column {number} of the header has no name")
        if len(name) > COLUMN_NAME_CHARACTERS:
            raise DataError(
                f"{where}: not a header: column {number} has {len(name)} characters ({name[:30]!r}...)", HEADER_CURE
            )
    names = known_names(header, source.columns)
    check_names(where, names)
    data = next(filter(DATA.search, names), None)
    if data and KNOWN.isdisjoint(names) and not any(name in names for name in source.columns):
        raise DataError(
            f"{where}: the first line looks like a row, not like a header: {reprlib.repr(data)}",
            f"{HEADER_CURE}; if it does, say which is which: --columns prompt=NAME,completion=NAME",
        )
    return names
