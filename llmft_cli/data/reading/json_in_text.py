"""Text files that hold JSON rows: recognised by their content."""

from __future__ import annotations

from dataclasses import replace

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.reading.compression import UTF_8_BOM
from llmft_cli.data.reading.encodings import recognise
from llmft_cli.data.reading.json_rows import read_json, read_jsonl
from llmft_cli.data.reading.rows import UTF_8, BadRow, Row, Source, UndecodableText
from llmft_cli.data.reading.sources import read_head

TEXT_SUFFIXES = (".txt", ".md")
FOUND = {".jsonl": "JSON Lines", ".json": "a JSON array"}


def with_json_suffix(source: Source, reporter: Reporter) -> Source:
    """A text file as JSON Lines or JSON, if all of it is rows; any other source as it is.

    Raises:
        DataError: most of its lines are JSON objects, but not all, or it cannot be read.
    """
    if source.path is None or source.suffix not in TEXT_SUFFIXES:
        return source
    try:
        suffix = suffix_of_rows(source)
    except UndecodableText:
        if source.encoding:
            raise
        suffix = suffix_of_rows(replace(source, encoding=recognise(source).encoding or UTF_8))
    if not suffix:
        return source
    reporter.note(f"{source.name} is {FOUND[suffix]}, read as rows (--format text reads it as one document)")
    return replace(source, suffix=suffix)


def suffix_of_rows(source: Source) -> str:
    """The type of the rows that a text is; empty if it is none.

    Raises:
        UndecodableText: it is not UTF-8, and nothing says that it is.
        DataError: as `is_json_lines`.
    """
    beginning = read_head(source).removeprefix(UTF_8_BOM).lstrip()
    if beginning.startswith(b"{"):
        return ".jsonl" if is_json_lines(source) else ""
    return ".json" if beginning.startswith(b"[") and is_array(source) else ""


def is_json_lines(source: Source) -> bool:
    """Whether every line of a text is a JSON object, apart from blank ones.

    Raises:
        DataError: most are, but not all.
    """
    objects = others = 0
    first_bad = None
    for row in read_jsonl(source):
        if is_object(row):
            objects += 1
        else:
            others += 1
            first_bad = first_bad or row
    if first_bad is None or objects <= others:
        return first_bad is None
    reason = first_bad.reason if isinstance(first_bad, BadRow) else "not an object"
    raise DataError(
        f"{source.name} looks like JSON Lines, but line {first_bad.line} is not a JSON object: {reason}",
        "rename it to end in .jsonl to use the other lines, or read it as one document with --format text",
    )


def is_array(source: Source) -> bool:
    """Whether a text is a JSON array of objects."""
    rows = 0
    try:
        for row in read_json(source):
            if not is_object(row):
                return False
            rows += 1
    except UndecodableText:
        if not source.encoding:
            raise
        return False
    except DataError:
        return False
    return rows > 0


def is_object(row: Row | BadRow) -> bool:
    return isinstance(row, Row) and isinstance(row.value, dict)
