"""Rows from tables: CSV and TSV, Parquet, Arrow."""

from __future__ import annotations

import csv
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmft_cli.base.errors import DataError, first_line
from llmft_cli.data.reading import compression
from llmft_cli.data.reading.compression import UTF_8_BOM, Consumed, check_length, ignore, lines_with_ends, unpacked_file
from llmft_cli.data.reading.json_text import utf_8_error_text
from llmft_cli.data.reading.rows import BadRow, Row, Source

COLUMN_NAME_CHARACTERS = 200
BATCH_ROWS = 256
BATCH_BYTES = 8 << 20


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


@dataclass
class ShareProgress:
    """Reports the bytes read of a file from the share of its rows that was read."""

    file_bytes: int
    consumed: Consumed
    reported_bytes: int = 0

    def advance_to(self, share: float) -> None:
        done_bytes = round(self.file_bytes * share)
        self.consumed(done_bytes - self.reported_bytes)
        self.reported_bytes = done_bytes


def read_csv(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """Rows as objects with the header's names. `line` is where a row begins: quoted cells may contain line breaks.

    Raises:
        DataError: the header cannot be used, or a quote is never closed and swallows the rows after it.
    """
    csv.field_size_limit(2 * compression.MAX_ROW_BYTES)
    record = Record()
    separator = "\t" if source.suffix == ".tsv" else ","
    reader = csv.reader(text_lines(source, record, consumed), delimiter=separator, strict=True)
    header: list[str] | None = None
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
        if header is None:
            header = cells
            check_header(source, record, header)
        elif problem := record.problem or row_problem(cells, header):
            yield BadRow(source.name, record.line, problem)
        else:
            yield Row(source.name, record.line, dict(zip(header, cells, strict=True)))


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
            record.problem = utf_8_error_text(error) + place
            yield bare.decode(errors="replace")


def check_header(source: Source, record: Record, header: Sequence[str]) -> None:
    """Check that a header names every column.

    Raises:
        DataError: it does not.
    """
    where = f"{source.name} line {record.line}"
    if record.problem:
        raise DataError(f"{where}: header: {record.problem}")
    if len(header) == 1 and (other := re.search("[;,\t|]", header[0])):
        names = {";": "semicolons", ",": "commas", "\t": "tabs", "|": "vertical bars"}
        raise DataError(
            f"{where}: the columns of the header {reprlib.repr(header[0])} are separated by {names[other.group()]}",
            "use commas in .csv and tabs in .tsv",
        )
    # pandas leaves the name of its index column empty.
    for number, name in enumerate(header, 1):
        if number > 1 and not name.strip():
            raise DataError(f"{where}: column {number} of the header has no name")
        if len(name) > COLUMN_NAME_CHARACTERS:
            raise DataError(
                f"{where}: not a header: column {number} has {len(name)} characters ({name[:30]!r}...)",
                "the first line of a table names its columns, such as prompt,completion",
            )
    check_names(where, header)


def check_names(where: str, names: Sequence[str]) -> None:
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{where}: the column {reprlib.repr(repeated)} appears more than once")


def read_parquet(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """The rows of a Parquet file; one that cannot be converted to Python values is bad.

    Raises:
        DataError: the file cannot be read, or expands too much.
    """
    import pyarrow
    import pyarrow.parquet

    number, progress = 0, ShareProgress(source.size_bytes, consumed)
    try:
        with unpacked_file(source) as path, pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            check_names(source.name, file.schema_arrow.names)
            rows_at_once = rows_per_batch(checked_size(source, file.metadata), file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=rows_at_once):
                yield from batch_rows(source, batch, number)
                number += batch.num_rows
                progress.advance_to(number / file.metadata.num_rows)
        progress.advance_to(1)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        place = f" after row {number}" if number else ""
        raise DataError(f"{source.name} is not a readable Parquet file{place}: {first_line(error)}") from error


def checked_size(source: Source, metadata: Any) -> int:
    """The size of all row groups according to the metadata, in bytes.

    Raises:
        DataError: it is too large for the size of the file.
    """
    size: int = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if size > compression.MAX_EXPANSION * source.size_bytes + compression.MAX_EXPANSION_EXCESS_BYTES:
        raise DataError(
            f"{source.name} expands {size // source.size_bytes} times when unpacked ({size >> 20} MiB)",
            f"the limit is {compression.MAX_EXPANSION} times",
        )
    return size


def rows_per_batch(size_bytes: int, rows: int) -> int:
    """How many rows to convert at once, if `rows` of them have `size_bytes`."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(size_bytes, 1)))


def read_arrow(source: Source, consumed: Consumed = ignore) -> Iterator[Row | BadRow]:
    """The rows of an Arrow file or stream, as `datasets` saves them.

    Raises:
        DataError: it is neither, or is truncated.
    """
    import pyarrow

    number, share_before, progress = 0, 0.0, ShareProgress(source.size_bytes, consumed)
    try:
        with unpacked_file(source) as path, pyarrow.memory_map(str(path)) as file:
            for batch, share in arrow_batches(source, file):
                # A damaged file may have offsets that point outside the batch.
                batch.validate(full=True)
                rows_at_once = rows_per_batch(batch.nbytes, batch.num_rows)
                for start in range(0, batch.num_rows, rows_at_once):
                    progress.advance_to(share_before + (share - share_before) * start / batch.num_rows)
                    yield from batch_rows(source, batch.slice(start, rows_at_once), number + start)
                number += batch.num_rows
                share_before = share
        progress.advance_to(1)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        place = f" after row {number}" if number else ""
        raise DataError(f"{source.name} is not a readable Arrow file{place}: {first_line(error)}") from error


def arrow_batches(source: Source, file: Any) -> Iterator[tuple[Any, float]]:
    """The record batches of a memory-mapped Arrow file or stream, each with the share of the file read up to its end."""
    import pyarrow

    is_stream = file.read(6) != b"ARROW1"
    file.seek(0)
    reader = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
    check_names(source.name, reader.schema.names)
    if is_stream:
        for batch in reader:
            yield batch, file.tell() / file.size()
    else:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index), (index + 1) / reader.num_record_batches


def batch_rows(source: Source, batch: Any, before: int) -> Iterator[Row | BadRow]:
    """The rows of a record batch that follows `before` earlier rows.

    Raises:
        DataError: a row is too long.
    """
    import pyarrow

    if batch.nbytes > compression.MAX_ROW_BYTES:
        for index in range(batch.num_rows):
            check_length(source, before + index + 1, batch.slice(index, 1).nbytes)
    try:
        values = batch.to_pylist()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        if batch.num_rows == 1:
            yield BadRow(source.name, before + 1, column_error_text(batch))
            return
        for index in range(batch.num_rows):
            yield from batch_rows(source, batch.slice(index, 1), before + index)
        return
    for number, value in enumerate(values, before + 1):
        yield Row(source.name, number, value)


def column_error_text(batch: Any) -> str:
    """What is wrong with the first unreadable column of a batch."""
    import pyarrow

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError as error:
            return f"the column {name!r} is not UTF-8 (byte {error.object[error.start]:#04x})"
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            return f"the column {name!r}: {first_line(error)}"
    raise AssertionError("every column can be read on its own, but not the batch")
