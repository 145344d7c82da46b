"""The rows of a source with their line numbers, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from llmft_cli.base.errors import DataError, first_line
from llmft_cli.base.network import hub_is_reachable
from llmft_cli.data.reading import compression
from llmft_cli.data.reading.compression import UTF_8_BOM, Consumed, chunks, ignore
from llmft_cli.data.reading.csv_rows import read_csv
from llmft_cli.data.reading.encodings import Recognition, recognise
from llmft_cli.data.reading.json_rows import read_json, read_jsonl
from llmft_cli.data.reading.json_text import NOT_UTF_8
from llmft_cli.data.reading.rows import UTF_8, BadRow, Row, Source, UndecodableText
from llmft_cli.data.reading.sources import near_file
from llmft_cli.data.reading.tables import read_arrow, read_parquet


def read(
    source: Source, split: str, consumed: Consumed = ignore, note: Callable[[str], None] = lambda text: None
) -> Iterator[Row | BadRow]:
    """The rows of a source in order; only a few are in memory at a time.

    Args:
        split: the split of a Hub dataset.
        consumed: called with the number of bytes newly read from disk; they add up to `source.size_bytes`.
        note: called with a line for the user if a file turns out to have another encoding than UTF-8.

    Raises:
        DataError: the source cannot be read.
    """
    if source.path is None:
        return read_hub(source.name, split)
    return read_file(source, consumed, note)


def read_file(source: Source, consumed: Consumed, note: Callable[[str], None]) -> Iterator[Row | BadRow]:
    """The rows of a file. At the first byte that is not UTF-8, its encoding is recognised and the file is read again."""
    rows, size_bytes = 0, 0
    if source.encoding not in ("", UTF_8):
        note(f"{source.name}: reading it as {source.encoding}")

    def counted(further_bytes: int) -> None:
        nonlocal size_bytes
        size_bytes += further_bytes
        consumed(further_bytes)

    try:
        for row in READERS[source.suffix](source, counted):
            yield row
            rows += 1
    except UndecodableText as error:
        if source.encoding:
            raise DataError(error.message, "llmft prepare --encoding NAME reads another encoding") from error
    else:
        return
    found = recognise(source)
    if found.encoding not in (None, UTF_8):
        note(f"{source.name} is not UTF-8: reading it as {found.encoding} (--encoding sets another)")
    # What comes before that byte is the same in every encoding that may be recognised.
    again = reread(replace(source, encoding=found.encoding or UTF_8), after(size_bytes, consumed), cure_of(found))
    yield from islice(again, rows, None)


def after(size_bytes: int, consumed: Consumed) -> Consumed:
    """A `Consumed` that leaves out the first bytes, which are reported already."""
    remaining = size_bytes

    def report(further_bytes: int) -> None:
        nonlocal remaining
        known = min(remaining, further_bytes)
        remaining -= known
        consumed(further_bytes - known)

    return report


def reread(source: Source, consumed: Consumed, cure: str) -> Iterator[Row | BadRow]:
    """The rows of a file whose encoding is settled, with the cure where a text does not have it."""
    try:
        for row in READERS[source.suffix](source, consumed):
            if cure and isinstance(row, BadRow) and row.reason.startswith(NOT_UTF_8):
                yield replace(row, reason=f"{row.reason}; {cure}")
            else:
                yield row
    except UndecodableText as error:
        raise DataError(error.message, cure or "llmft prepare --encoding NAME reads another encoding") from error


def cure_of(found: Recognition) -> str:
    """What reads a text whose encoding is not certain."""
    if found.encoding:
        return ""
    *others, last = found.guesses or ("NAME",)
    names = f"{', '.join(others)} or {last}" if others else last
    return f"if the file is not UTF-8, name its encoding: --encoding {names}"


def read_text_file(source: Source, consumed: Consumed = ignore) -> Iterator[Row]:
    """A text file as one document, with line endings converted to line feeds.

    Raises:
        DataError: it is too long, or not text.
    """
    parts, size_bytes = [], 0
    for chunk in chunks(source, consumed):
        parts.append(chunk)
        size_bytes += len(chunk)
        if size_bytes > compression.MAX_ROW_BYTES:
            raise DataError(
                f"{source.name} line 1: a document of more than {compression.MAX_ROW_BYTES >> 20} MiB",
                "a text file is one document: split it into several files",
            )
    content = b"".join(parts).removeprefix(UTF_8_BOM)
    if b"\0" in content:
        raise DataError(f"{source.name} line {content.count(10, 0, content.index(0)) + 1}: a NUL byte, so this is not text")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UndecodableText(f"{source.name} line {line} is not UTF-8 (byte {content[error.start]:#04x})") from error
    yield Row(source.name, 1, {"text": text.replace("\r\n", "\n").replace("\r", "\n")})


def read_hub(name: str, split: str) -> Iterator[Row]:
    import datasets

    datasets.disable_progress_bars()
    if not hub_is_reachable():
        problem = f"there is no file {name}, and the Hub cannot be reached to look for a dataset of that name"
        raise DataError(problem, near_file(Path(name)))
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets raises a dozen unrelated classes for rows that cannot be loaded
        raise DataError(f"the Hub dataset {name} (split {split}) cannot be read: {first_line(error)}") from error
    for number, value in enumerate(rows, 1):
        yield Row(name, number, value)


READERS: dict[str, Callable[[Source, Consumed], Iterator[Row | BadRow]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_text_file,
    ".md": read_text_file,
}
