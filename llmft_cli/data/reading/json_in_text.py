"""Text files that hold JSON rows: recognised by their content."""

from __future__ import annotations

from dataclasses import replace

from llmft_cli.base.errors import DataError
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.reading.compression import UTF_8_BOM
from llmft_cli.data.reading.json_rows import read_json, read_jsonl
from llmft_cli.data.reading.rows import BadRow, Row, Source
from llmft_cli.data.reading.sources import read_head

TEXT_SUFFIXES = (".txt", ".md")


def with_json_suffix(source: Source, reporter: Reporter) -> Source:
    """A text file as JSON Lines or JSON, if all of it is rows; any other source as it is.

    Raises:
        DataError: most of its lines are JSON objects, but not all, or it cannot be read.
    """
    if source.path is None or source.suffix not in TEXT_SUFFIXES:
        return source
    beginning = read_head(source).removeprefix(UTF_8_BOM).lstrip()
    if beginning.startswith(b"{") and is_json_lines(source):
        found, suffix = "JSON Lines", ".jsonl"
    elif beginning.startswith(b"[") and is_array(source):
        found, suffix = "a JSON array", ".json"
    else:
        return source
    reporter.note(f"{source.name} is {found}, read as rows (--format text reads it as one document)")
    return replace(source, suffix=suffix)


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
    except DataError:
        return False
    return rows > 0


def is_object(row: Row | BadRow) -> bool:
    return isinstance(row, Row) and isinstance(row.value, dict)
