"""Sources of rows: files, directories and Hub datasets, read row by row with their line numbers."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft_cli.errors import DataError
from llmft_cli.network import hub_is_reachable

BINARY_PROBE_BYTES = 8192
CSV_FIELD_BYTES = 1 << 27


@dataclass(frozen=True)
class Row:
    """One row as read. `value` is a dict; `line` counts from 1 (the row's number where the format has no lines)."""

    source: str
    line: int
    value: Any


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    source: str
    line: int
    reason: str


@dataclass(frozen=True)
class Source:
    """Something that rows are read from: a file, or a Hub dataset where `path` is None."""

    name: str
    path: Path | None


def find_sources(names: Sequence[str]) -> list[Source]:
    """The files that paths stand for (directories recursively), and Hub datasets.

    Raises:
        DataError: nothing is there, the type is unknown, or a file is empty or not readable.
    """
    sources: list[Source] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file() and item.suffix.lower() in READERS)
            if not files:
                raise DataError(f"{name} holds no data files", f"readable types: {', '.join(READERS)}")
            sources += [Source(str(file), file) for file in files]
        elif path.exists():
            sources.append(Source(name, path))
        elif path.suffix.lower() in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise DataError(f"{name} does not exist")
        else:
            sources.append(Source(name, None))
    for source in sources:
        if source.path is not None:
            check_file(source.path)
    return sources


def check_file(path: Path) -> None:
    """Refuse what cannot hold rows before anything is loaded for it."""
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} has no type known here", f"readable types: {', '.join(READERS)}")
    try:
        with path.open("rb") as file:
            head = file.read(BINARY_PROBE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not head.strip():
        raise DataError(f"{path} is empty")
    if b"\0" in head and path.suffix.lower() != ".parquet":
        raise DataError(f"{path} is a binary file, not text (byte 0 at offset {head.index(0)})")


def read(source: Source, split: str) -> Iterator[Row | BadRow]:
    """The rows of a source in order; `split` names the part of a Hub dataset.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    if source.path is None:
        return read_hub(source.name, split)
    return READERS[source.path.suffix.lower()](source.path)


def read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                yield Row(str(path), line, json.loads(raw.decode("utf-8-sig")))
            except UnicodeDecodeError as error:
                yield BadRow(str(path), line, f"not UTF-8 (byte {error.object[error.start]:#04x} in column {error.start + 1})")
            except (ValueError, RecursionError) as error:
                yield BadRow(str(path), line, f"malformed JSON: {error}")


def read_json(path: Path) -> Iterator[Row | BadRow]:
    """An array of rows, an object that holds only such an array (`{"data": [...]}`), or JSON lines under the other name."""
    text = read_text(path)
    first = text.lstrip()[0]
    if first == "[":
        yield from array_rows(path, text, text.index("["))
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        yield from read_jsonl(path)
        return
    wrapped = whole[next(iter(whole))] if isinstance(whole, dict) and len(whole) == 1 else None
    if isinstance(wrapped, list) and "messages" not in whole and "conversations" not in whole:
        yield from array_rows(path, text, text.index("["))
    else:
        yield Row(str(path), 1, whole)


def array_rows(path: Path, text: str, start: int) -> Iterator[Row]:
    """The elements of the JSON array at `start`, each with the line it begins on."""
    decoder = json.JSONDecoder()
    space = re.compile(r"[\s,]*")
    position, line, counted = start + 1, 1, 0
    while True:
        position = space.match(text, position).end()  # type: ignore[union-attr]
        line += text.count("\n", counted, position)
        counted = position
        if text.startswith("]", position):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(f"{path} line {line}: malformed JSON: {reason}") from error
        yield Row(str(path), line, value)


def read_csv(path: Path) -> Iterator[Row | BadRow]:
    csv.field_size_limit(CSV_FIELD_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="")
        line = 2
        try:
            for value in reader:
                if "" in value or None in value.values():
                    yield BadRow(str(path), line, f"does not have the header's {len(reader.fieldnames or [])} columns")
                else:
                    yield Row(str(path), line, value)
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8: {error.reason} after line {line}") from error
        except csv.Error as error:
            raise DataError(f"{path} line {line}: malformed CSV: {error}") from error


def read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        line = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                line += 1
                yield Row(str(path), line, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def read_text_file(path: Path) -> Iterator[Row]:
    """A text file is one document."""
    yield Row(str(path), 1, {"text": read_text(path)})


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line} is not UTF-8 (byte {error.object[error.start]:#04x})") from error


def read_hub(name: str, split: str) -> Iterator[Row]:
    import datasets

    datasets.disable_progress_bars()
    if not hub_is_reachable():
        raise DataError(f"there is no file {name}, and the Hub cannot be reached to look for a dataset of that name")
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets raises a dozen unrelated classes; all mean that the rows cannot be had
        raise DataError(f"the Hub dataset {name} (split {split}) cannot be read: {str(error).splitlines()[0]}") from error
    for number, value in enumerate(rows, 1):
        yield Row(name, number, value)


READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text_file,
}
