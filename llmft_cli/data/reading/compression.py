"""The bytes and lines of a source: decompressed if necessary, with limits on the size of a row and of the output.

Only one chunk is in memory, or the one row being assembled from chunks.
"""

from __future__ import annotations

import codecs
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from llmft_cli.base.errors import DataError, first_line
from llmft_cli.data.reading.rows import UTF_8, Source, UndecodableText

BINARY_SUFFIXES = {".parquet", ".arrow"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
UTF_8_BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 1 << 18
MAX_ROW_BYTES = 64 << 20
MAX_EXPANSION = 200
# Small files may expand more than MAX_EXPANSION times: their output still fits in memory.
MAX_EXPANSION_EXCESS_BYTES = 64 << 20

Consumed = Callable[[int], None]


def ignore(size_bytes: int) -> None:
    """A `Consumed` that does nothing."""


def check_length(source: Source, line: int, size: int) -> None:
    """Reject a row that begins on `line` once it is known to be too long.

    Raises:
        DataError: `size` is above `MAX_ROW_BYTES`.
    """
    if size > MAX_ROW_BYTES:
        raise DataError(
            f"{source.name} line {line}: a single row of more than {MAX_ROW_BYTES >> 20} MiB",
            "JSON Lines and CSV have one row per line; split longer texts into several rows",
        )


def chunks(source: Source, consumed: Consumed = ignore) -> Iterator[bytes]:
    """A file's decompressed content, as UTF-8 if another encoding of it is known, in chunks of about `CHUNK_BYTES`.

    Args:
        consumed: called after each chunk with the number of bytes newly read from disk.

    Raises:
        DataError: the file cannot be read, its compressed data is damaged, it expands too much, or a byte does not belong
            to its encoding (not checked for UTF-8).
    """
    content = content_of(source, consumed)
    return content if source.encoding in ("", UTF_8) else as_utf_8(source, content)


def as_utf_8(source: Source, content: Iterator[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(source.encoding)()
    line = 1
    for chunk in chain(content, (b"",)):
        try:
            text = decoder.decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            byte = f"byte {error.object[error.start]:#04x}"
            raise UndecodableText(f"{source.name} line {line} is not {source.encoding} ({byte})") from error
        except UnicodeError as error:
            raise UndecodableText(f"{source.name} is not {source.encoding}: {first_line(error)}") from error
        line += text.count("\n")
        yield text.encode()


def content_of(source: Source, consumed: Consumed) -> Iterator[bytes]:
    assert source.path is not None
    try:
        with source.path.open("rb") as file:
            if source.compression:
                yield from unpacked(source, file, consumed)
                return
            while chunk := file.read(CHUNK_BYTES):
                consumed(len(chunk))
                yield chunk
    except OSError as error:
        raise DataError(f"{source.name} cannot be read: {error.strerror or error}") from error


def unpacked(source: Source, file: BinaryIO, consumed: Consumed) -> Iterator[bytes]:
    import pyarrow

    packed_bytes, unpacked_bytes = 0, 0
    with pyarrow.CompressedInputStream(file, source.compression) as stream:
        while True:
            try:
                chunk = stream.read(CHUNK_BYTES)
            except OSError as error:
                raise corruption_error(source, unpacked_bytes, str(error)) from error
            consumed(file.tell() - packed_bytes)
            packed_bytes = file.tell()
            unpacked_bytes += len(chunk)
            if unpacked_bytes > MAX_EXPANSION * packed_bytes + MAX_EXPANSION_EXCESS_BYTES:
                raise DataError(
                    f"{source.name} expands {unpacked_bytes // packed_bytes} times when unpacked "
                    f"({unpacked_bytes >> 20} MiB from its first {packed_bytes >> 10} KiB)",
                    f"the limit is {MAX_EXPANSION} times; if its rows are real, unpack it first",
                )
            if not chunk:
                return
            yield chunk


def corruption_error(source: Source, intact_bytes: int, complaint: str) -> DataError:
    """The error for compressed data that is intact for `intact_bytes`, with the line where it breaks."""
    import pyarrow

    assert source.path is not None
    line = 1
    with (
        source.path.open("rb") as file,
        pyarrow.CompressedInputStream(file, source.compression) as stream,
        contextlib.suppress(OSError),
    ):
        while intact_bytes > 0:
            chunk = stream.read(min(CHUNK_BYTES, intact_bytes))
            line += chunk.count(b"\n")
            intact_bytes -= len(chunk)
        # A failed read returns nothing, even if part of it was decompressed; so read byte by byte.
        while byte := stream.read(1):
            line += byte == b"\n"
    what = f"the {source.compression} data {'ends unexpectedly' if 'Truncated' in complaint else 'is damaged'}"
    has_lines = source.suffix not in BINARY_SUFFIXES
    return DataError(
        f"{source.name} line {line}: {what} here" if has_lines else f"{source.name}: {what}", "copy or create the file again"
    )


def lines(source: Source, consumed: Consumed = ignore) -> Iterator[bytes]:
    """The lines of a file without their line feeds; only a line feed ends a line.

    Raises:
        DataError: as `chunks`, or a line is too long.
    """
    parts: list[bytes] = []
    line, pending_bytes = 1, 0
    for chunk in chunks(source, consumed):
        first, *others = chunk.split(b"\n")
        parts.append(first)
        pending_bytes += len(first)
        check_length(source, line, pending_bytes)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            line += len(others)
            parts, pending_bytes = others[-1:], len(others[-1])
    yield b"".join(parts)


def lines_with_ends(source: Source, consumed: Consumed = ignore) -> Iterator[bytes]:
    """The lines of a file with their endings: line feeds, carriage returns or both.

    Raises:
        DataError: as `lines`.
    """
    parts: list[bytes] = []
    line, pending_bytes = 1, 0
    for chunk in chunks(source, consumed):
        parts.append(chunk)
        pending_bytes += len(chunk)
        if b"\n" in chunk or b"\r" in chunk:
            *whole, last = b"".join(parts).splitlines(keepends=True)
            # A carriage return at the end may be half of a line ending.
            if last.endswith(b"\n"):
                whole.append(last)
                last = b""
            yield from whole
            line += len(whole)
            parts, pending_bytes = [last], len(last)
        check_length(source, line, pending_bytes)
    yield from b"".join(parts).splitlines(keepends=True)


@contextlib.contextmanager
def unpacked_file(source: Source, consumed: Consumed = ignore) -> Iterator[Path]:
    """The file itself, or a temporary decompressed copy, for formats that need random access.

    Raises:
        DataError: as `chunks`.
    """
    assert source.path is not None
    if not source.compression:
        yield source.path
        return
    # Windows cannot open a temporary file twice, nor delete one that is still memory-mapped.
    with tempfile.TemporaryDirectory(prefix="llmft-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "unpacked")
        with path.open("wb") as copy:
            copy.writelines(chunks(source, consumed))
        yield path
