"""Rows from the columns of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmft_cli.base.errors import DataError, first_line
from llmft_cli.data.reading import compression
from llmft_cli.data.reading.column_names import check_names, known_names
from llmft_cli.data.reading.compression import Consumed, check_length, ignore, unpacked_file
from llmft_cli.data.reading.plain_values import is_plain, plain
from llmft_cli.data.reading.rows import BadRow, Row, Source

BATCH_ROWS = 256
BATCH_BYTES = 8 << 20


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
            names = known_names(file.schema_arrow.names, source.columns)
            for batch in file.iter_batches(batch_size=rows_at_once):
                yield from batch_rows(source, batch.rename_columns(names), number)
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
            for original, share in arrow_batches(source, file):
                batch = original.rename_columns(known_names(original.schema.names, source.columns))
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
        values = values_of(batch)
    except (pyarrow.ArrowException, ValueError, OverflowError, KeyError):
        if batch.num_rows == 1:
            yield BadRow(source.name, before + 1, column_error_text(batch))
            return
        for index in range(batch.num_rows):
            yield from batch_rows(source, batch.slice(index, 1), before + index)
        return
    for number, value in enumerate(values, before + 1):
        yield Row(source.name, number, value)


def values_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch as objects of JSON values, except for bytes that are not UTF-8."""
    rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
    for field in batch.schema:
        if not is_plain(field.type):
            for row in rows:
                row[field.name] = plain(row[field.name])
    return rows


def column_error_text(batch: Any) -> str:
    """What is wrong with the first unreadable column of a batch."""
    import pyarrow

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist(maps_as_pydicts="strict")
        except UnicodeDecodeError as error:
            return f"the column {name!r} is not UTF-8 (byte {error.object[error.start]:#04x})"
        except (pyarrow.ArrowException, ValueError, OverflowError, KeyError) as error:
            return f"the column {name!r}: {first_line(error)}"
    raise AssertionError("every column can be read on its own, but not the batch")
