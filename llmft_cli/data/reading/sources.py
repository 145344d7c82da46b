"""Sources of rows: files, directories, standard input and Hub datasets, found and checked before any work starts."""

from __future__ import annotations

import atexit
import difflib
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading.compression import CHUNK_BYTES, COMPRESSIONS, MAX_EXPANSION, chunks
from llmft_cli.data.reading.detection import (
    COMPRESSION_MAGIC,
    HEAD_BYTES,
    detected,
    refuse_other_files,
    refuse_packed,
    suffix_of_content,
    with_encoding,
)
from llmft_cli.data.reading.rows import Source

STDIN, STDIN_NAME = "-", "stdin"
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md")
SUPPORTED = f"supported types: {', '.join(SUFFIXES)}, each also compressed (.gz, .zst)"
PROBED_BYTES = 3 << 16  # of compressed data
# What datasets' save_to_disk writes in addition to the rows.
SAVED_DATASET_FILES = {"state.json", "dataset_info.json", "dataset_dict.json"}
NOT_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def find_sources(names: Sequence[str], encoding: str = "") -> list[Source]:
    """The files of paths (directories recursively), standard input (`-`), and Hub datasets.

    Standard input is copied to a temporary file that is deleted when the process exits.

    Args:
        encoding: of every text; empty: by its content.

    Raises:
        DataError: a path does not exist, its type is unknown, or a file is empty or not readable.
    """
    sources: list[Source] = []
    for name in names:
        if name == STDIN:
            sources.append(spooled_stdin(encoding))
            continue
        try:
            path = Path(name).expanduser()
            is_folder = path.is_dir()
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no such user
            raise DataError(f"{shown(name)} cannot be read: {getattr(error, 'strerror', error)}") from error
        if is_folder:
            files = sorted(data_files(path))
            if not files:
                raise DataError(f"{shown(name)} contains no data files", SUPPORTED)
            sources += [file_source(str(file), file, encoding) for file in files]
        elif os.path.lexists(path):
            sources.append(file_source(name, path, encoding))
        elif suffix_and_compression(path)[0] in SUFFIXES or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
            raise DataError(f"{shown(name)} does not exist", near_file(path))
        else:
            sources.append(Source(name, None))
    return sources


def near_file(path: Path) -> str:
    """A question after a file beside this one with nearly its name; empty if there is none."""
    with suppress(OSError):
        files = {file.stem: file for file in path.parent.iterdir()}
        near = difflib.get_close_matches(path.stem, files, n=1, cutoff=0.75)
        return f"did you mean {shlex.quote(shown(str(files[near[0]])))}?" if near else ""
    return ""


def shown(name: str) -> str:
    """A path's name as valid Unicode: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def suffix_and_compression(path: Path) -> tuple[str, str]:
    """A file's type (such as `.jsonl`) and compression, by its name."""
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    return (Path(path.stem) if compression else path).suffix.lower(), compression


def data_files(folder: Path) -> Iterator[Path]:
    """The data files in a directory, by their names; hidden files and READMEs are skipped.

    Raises:
        DataError: a directory cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{shown(str(error.filename))} cannot be read: {error.strerror}") from error

    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # A symbolic link may point back to a parent.
        if (place := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "dataset_dict.json" in files and len(folders) > 1:
            place = shown(parent)
            raise DataError(f"{place} contains the splits {', '.join(folders)}", f"name one of them: {place}/{folders[0]}")
        saved_dataset = {"state.json", "dataset_info.json"} <= set(files)
        for name in files:
            file = Path(parent) / name
            is_metadata = name in SAVED_DATASET_FILES or name.startswith("cache-")
            if (saved_dataset or name == "dataset_dict.json") and is_metadata:
                continue
            if (
                suffix_and_compression(file)[0] in SUFFIXES
                and not name.startswith(".")
                and not name.lower().startswith("readme.")
            ):
                yield file


def file_source(name: str, path: Path, encoding: str = "") -> Source:
    """A file as a source, checked before anything is loaded for it.

    Args:
        encoding: of a text; empty: by its content.

    Raises:
        DataError: it cannot contain rows.
    """
    name = shown(name)
    try:
        state = path.stat()
    except OSError as error:
        broken_link = f" (a symbolic link to {shown(str(path.readlink()))})" if path.is_symlink() else ""
        raise DataError(f"{name} cannot be read: {error.strerror}{broken_link}") from error
    if what := NOT_FILES.get(stat.S_IFMT(state.st_mode)):
        raise DataError(f"{name} is {what}, not a file", f"pass its rows through standard input: llmft prepare - < {name}")
    suffix, compression = suffix_and_compression(path)
    source = Source(name, path, suffix, compression, state.st_size)
    if suffix not in SUFFIXES:
        if not compression:
            refuse_packed(source, read_head(source))
        raise DataError(f"{name} has an unknown file type", SUPPORTED)
    head = read_head(replace(source, compression=""))
    if not head:
        raise DataError(f"{name} is empty")
    if not compression:
        return detected(replace(source, encoding=encoding), head)
    refuse_other_files(source, head)
    if not head.startswith(tuple(magic for magic, known in COMPRESSION_MAGIC.items() if known == compression)):
        raise DataError(f"{name} is not {compression} data, despite its name", f"remove {path.suffix} from its name")
    return detected(replace(source, encoding=encoding), read_head(source))


def read_head(source: Source) -> bytes:
    """The first decompressed bytes of a source; reads enough of it to detect a decompression bomb.

    Raises:
        DataError: it cannot be decompressed.
    """
    head, unpacked_bytes, packed_bytes = b"", 0, 0

    def count(further_bytes: int) -> None:
        nonlocal packed_bytes
        packed_bytes += further_bytes

    for chunk in chunks(source, count):
        head += chunk[: HEAD_BYTES - len(head)]
        unpacked_bytes += len(chunk)
        probed = packed_bytes >= PROBED_BYTES and unpacked_bytes <= MAX_EXPANSION * packed_bytes
        if len(head) == HEAD_BYTES and (probed or not source.compression):
            break
    return head


def spooled_stdin(encoding: str) -> Source:
    """Standard input as a source, its type detected from its content.

    Raises:
        DataError: nothing is piped to it, or it cannot contain rows.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError(
            "nothing was piped to standard input", "pipe rows in, for example: zcat rows.jsonl.gz | llmft prepare -"
        )
    number, file = tempfile.mkstemp(prefix="llmft-stdin-")
    path = Path(file)
    atexit.register(path.unlink, missing_ok=True)
    try:
        with os.fdopen(number, "wb") as spool:
            beginning = sys.stdin.buffer.read(HEAD_BYTES)
            if not beginning.startswith(tuple(COMPRESSION_MAGIC)):
                # Reject what cannot contain rows before copying the rest, which may be endless.
                detected_stdin(Source(STDIN_NAME, path, encoding=encoding), beginning)
            spool.write(beginning)
            shutil.copyfileobj(sys.stdin.buffer, spool, CHUNK_BYTES)
    except IsADirectoryError as error:
        raise DataError(f"standard input cannot be read: {error.strerror}") from error
    source = Source(STDIN_NAME, path, size_bytes=path.stat().st_size)
    head = read_head(source)
    compression = next((known for magic, known in COMPRESSION_MAGIC.items() if head.startswith(magic)), "")
    source = replace(source, compression=compression)
    head = read_head(source) if compression else head
    return detected_stdin(replace(source, encoding=encoding), head)


def detected_stdin(source: Source, head: bytes) -> Source:
    _, text = with_encoding(source, head)
    return detected(replace(source, suffix=suffix_of_content(text)), head)
