"""Sources of rows: files, directories and Hub datasets, read row by row with their line numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmft_cli.data.rows import BadRow, Row, Source
from llmft_cli.errors import DataError, first_line
from llmft_cli.network import hub_is_reachable

BINARY_PROBE_BYTES = 8192
CSV_FIELD_BYTES = 1 << 27
UTF_8_BOM = b"\xef\xbb\xbf"
UTF_16_BOMS = (b"\xff\xfe", b"\xfe\xff")
JSON_SPACE = re.compile(r"[ \t\n\r]*")


def find_sources(names: Sequence[str]) -> list[Source]:
    """The files that paths stand for (directories recursively), and Hub datasets.

    Raises:
        DataError: nothing is there, the type is unknown, or a file is empty or not readable.
    """
    sources: list[Source] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if is_data_file(item, path))
            if not files:
                raise DataError(f"{name} holds no data files", f"readable types: {', '.join(READERS)}")
            sources += [Source(str(file), file) for file in files]
        elif path.exists():
            sources.append(Source(name, path))
        elif path.suffix.lower() in READERS or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
            raise DataError(f"{name} does not exist")
        else:
            sources.append(Source(name, None))
    for source in sources:
        if source.path is not None:
            check_file(source.path)
    return sources


def is_data_file(file: Path, folder: Path) -> bool:
    """Whether a file within `folder` holds data, by its name; hidden files and a README do not."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in READERS and file.is_file() and not hidden and file.stem.lower() != "readme"


def check_file(path: Path) -> None:
    """Refuse what cannot hold rows before anything is loaded for it."""
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} has no type known here", f"readable types: {', '.join(READERS)}")
    try:
        with path.open("rb") as file:
            head = file.read(BINARY_PROBE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not head.removeprefix(UTF_8_BOM).strip() and len(head) < BINARY_PROBE_BYTES:
        raise DataError(f"{path} is empty")
    if head.startswith(UTF_16_BOMS):
        raise DataError(f"{path} is UTF-16, not UTF-8", "save it as UTF-8")
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
                yield Row(str(path), line, json.loads(raw.decode("utf-8-sig").rstrip()))
            except UnicodeDecodeError as error:
                yield BadRow(str(path), line, f"not UTF-8 (byte {error.object[error.start]:#04x} in column {error.start + 1})")
            except (ValueError, RecursionError) as error:
                yield BadRow(str(path), line, f"malformed JSON: {json_complaint(error)}")


def json_complaint(error: ValueError | RecursionError) -> str:
    """What is wrong in one line of JSON."""
    if isinstance(error, json.JSONDecodeError):
        return "it ends too early" if error.pos >= len(error.doc) else f"{error.msg} in column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else first_line(error)


def read_json(path: Path) -> Iterator[Row | BadRow]:
    """An array of rows, an object that holds only such an array (`{"data": [...]}`), or JSON lines under the other name.

    Raises:
        DataError: it is none of these; a broken array is refused whole, since its rows cannot be told apart.
    """
    text = read_text(path).rstrip()
    if not text:
        raise DataError(f"{path} is empty")
    if text.lstrip().startswith("["):
        yield from array_rows(path, text, text.index("["))
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if len(re.findall(r"^\{", text, re.MULTILINE)) < 2:
            raise json_error(path, error, 1) from error
        yield from read_jsonl(path)
        return
    wrapped = whole[next(iter(whole))] if isinstance(whole, dict) and len(whole) == 1 else None
    if isinstance(wrapped, list) and "messages" not in whole and "conversations" not in whole:
        _, key_end = json.JSONDecoder().raw_decode(text, text.index('"'))
        yield from array_rows(path, text, text.index("[", key_end), alone=False)
    else:
        yield Row(str(path), 1, whole)


def array_rows(path: Path, text: str, start: int, alone: bool = True) -> Iterator[Row]:
    """The elements of the JSON array at `start`, each with the line it begins on; `alone`: nothing may follow it."""
    decoder = json.JSONDecoder()
    position, line, counted = skip_space(text, start + 1), 1, 0
    ended = text.startswith("]", position)
    while not ended:
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
            yield Row(str(path), line, value)
            position = skip_space(text, position)
            ended = text.startswith("]", position)
            if not ended:
                position = after_comma(text, position)
        except (ValueError, RecursionError) as error:
            raise json_error(path, error, line) from error
    rest = skip_space(text, position + 1)
    if alone and rest < len(text):
        raise json_error(path, json.JSONDecodeError("Extra data", text, rest), line)


def after_comma(text: str, position: int) -> int:
    """Where the next element of an array begins."""
    if not text.startswith(",", position):
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    following = skip_space(text, position + 1)
    if text.startswith("]", following):
        raise json.JSONDecodeError("Illegal trailing comma before end of array", text, position)
    return following


def skip_space(text: str, position: int) -> int:
    return JSON_SPACE.match(text, position).end()  # type: ignore[union-attr]


def json_error(path: Path, error: ValueError | RecursionError, line: int) -> DataError:
    """The refusal of a whole file; `line` is where the row began, for errors that do not know their own."""
    line = error.lineno if isinstance(error, json.JSONDecodeError) else line
    return DataError(f"{path} line {line}: malformed JSON: {json_complaint(error)}")


def read_csv(path: Path) -> Iterator[Row | BadRow]:
    """Rows as objects with the header's names; `line` is where a row begins, for quoted cells may hold line ends.

    Raises:
        DataError: it is not UTF-8, or a quote is never closed, so that it swallows the rows after it.
    """
    csv.field_size_limit(CSV_FIELD_BYTES)
    reader = csv.reader(io.StringIO(decoded(path), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                raise DataError(f"{path} line {line}: a quote is opened and never closed") from error
            yield BadRow(str(path), line, f"malformed CSV: {error}")
            continue
        if not cells:
            continue
        if header is None:
            header = cells
        elif len(cells) != len(header):
            yield BadRow(str(path), line, f"has {len(cells)} columns, the header has {len(header)}")
        else:
            yield Row(str(path), line, dict(zip(header, cells, strict=True)))


def read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        line = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                line += 1
                yield Row(str(path), line, value)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {first_line(error)}") from error


def read_text_file(path: Path) -> Iterator[Row]:
    """A text file is one document."""
    yield Row(str(path), 1, {"text": read_text(path)})


def read_text(path: Path) -> str:
    """A file's text with Unix line ends."""
    return decoded(path).replace("\r\n", "\n").replace("\r", "\n")


def decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
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
        raise DataError(f"the Hub dataset {name} (split {split}) cannot be read: {first_line(error)}") from error
    for number, value in enumerate(rows, 1):
        yield Row(name, number, value)


READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text_file,
    ".md": read_text_file,
}
