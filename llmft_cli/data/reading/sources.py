"""Where rows come from: files, directories, standard input and Hub datasets, found and checked before any work is done."""

from __future__ import annotations

import atexit
import codecs
import csv
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llmft_cli.base.errors import DataError
from llmft_cli.data.reading.compression import BINARY_KINDS, CHUNK_BYTES, COMPRESSIONS, MAX_EXPANSION, UTF_8_BOM, chunks
from llmft_cli.data.reading.rows import Source

STDIN, STDIN_SHOWN = "-", "stdin"
KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md")
READABLE = f"readable types: {', '.join(KINDS)}, each also with .gz or .zst behind it"
HEAD_BYTES = 8192
SOUNDED_BYTES = 3 << 16  # of compressed data
# In this order: the mark of UTF-32 begins with that of UTF-16.
WIDE_BOMS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
COMPRESSION_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
ARCHIVE_MAGIC = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    **COMPRESSION_MAGIC,
}
ARROW_MAGIC = (b"ARROW1", b"\xff\xff\xff\xff")
# What datasets' save_to_disk writes beside the rows.
SAVED_DATASET_FILES = {"state.json", "dataset_info.json", "dataset_dict.json"}
COLUMN_NAMES = {"messages", "conversations", "prompt", "completion", "instruction", "output", "question", "answer", "text"}
NOT_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def find_sources(names: Sequence[str]) -> list[Source]:
    """The files that paths stand for (directories recursively), standard input (`-`), and Hub datasets.

    Standard input is read to its end, into a temporary file that lives as long as the process.

    Raises:
        DataError: nothing is there, the type is unknown, or a file is empty or not readable.
    """
    sources: list[Source] = []
    for name in names:
        if name == STDIN:
            sources.append(spooled_stdin())
            continue
        try:
            path = Path(name).expanduser()
            is_folder = path.is_dir()
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no such user
            raise DataError(f"{shown(name)} cannot be read: {getattr(error, 'strerror', error)}") from error
        if is_folder:
            files = sorted(data_files(path))
            if not files:
                raise DataError(f"{shown(name)} holds no data files", READABLE)
            sources += [file_source(str(file), file) for file in files]
        elif os.path.lexists(path):
            sources.append(file_source(name, path))
        elif type_of(path)[0] in KINDS or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
            raise DataError(f"{shown(name)} does not exist")
        else:
            sources.append(Source(name, None))
    return sources


def shown(name: str) -> str:
    """A path's name as valid Unicode: bytes that are not UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def type_of(path: Path) -> tuple[str, str]:
    """A file's kind (a file type such as `.jsonl`) and compression, by its name."""
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    return (Path(path.stem) if compression else path).suffix.lower(), compression


def data_files(folder: Path) -> Iterator[Path]:
    """The files within a directory that hold data, by their names; hidden files and a README do not.

    Raises:
        DataError: a directory may not be looked into.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{shown(str(error.filename))} cannot be read: {error.strerror}") from error

    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # A link may lead back to where it stands.
        if (place := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "dataset_dict.json" in files and len(folders) > 1:
            place = shown(parent)
            raise DataError(f"{place} holds the splits {', '.join(folders)}", f"name one of them: {place}/{folders[0]}")
        saved_dataset = {"state.json", "dataset_info.json"} <= set(files)
        for name in files:
            file = Path(parent) / name
            beside_rows = name in SAVED_DATASET_FILES or name.startswith("cache-")
            if (saved_dataset or name == "dataset_dict.json") and beside_rows:
                continue
            if type_of(file)[0] in KINDS and not name.startswith(".") and not name.lower().startswith("readme."):
                yield file


def file_source(name: str, path: Path) -> Source:
    """A file as a source, checked for what cannot hold rows before anything is loaded for it.

    Raises:
        DataError: it cannot, and why.
    """
    name = shown(name)
    try:
        state = path.stat()
    except OSError as error:
        broken = f" (a symbolic link to {shown(str(path.readlink()))})" if path.is_symlink() else ""
        raise DataError(f"{name} cannot be read: {error.strerror}{broken}") from error
    if what := NOT_FILES.get(stat.S_IFMT(state.st_mode)):
        raise DataError(f"{name} is {what}, not a file", f"pass its rows through standard input: llmft prepare - < {name}")
    kind, compression = type_of(path)
    if kind not in KINDS:
        raise DataError(f"{name} has no type known here", READABLE)
    source = Source(name, path, kind, compression, state.st_size)
    head = head_of(replace(source, compression=""))
    if not head:
        raise DataError(f"{name} is empty")
    if not compression:
        return checked(source, head)
    if not head.startswith(tuple(magic for magic, known in COMPRESSION_MAGIC.items() if known == compression)):
        raise DataError(f"{name} is not {compression} data, as its name says", f"take the {path.suffix} off its name")
    return checked(source, head_of(source))


def head_of(source: Source) -> bytes:
    """The first bytes of a source, unpacked, of which so much is read that a bomb is found before its rows are used.

    Raises:
        DataError: it cannot be unpacked.
    """
    head, unpacked_bytes, packed_bytes = b"", 0, 0

    def count(further_bytes: int) -> None:
        nonlocal packed_bytes
        packed_bytes += further_bytes

    for chunk in chunks(source, count):
        head += chunk[: HEAD_BYTES - len(head)]
        unpacked_bytes += len(chunk)
        sounded = packed_bytes >= SOUNDED_BYTES and unpacked_bytes <= MAX_EXPANSION * packed_bytes
        if len(head) == HEAD_BYTES and (sounded or not source.compression):
            break
    return head


def checked(source: Source, head: bytes) -> Source:
    """A source of which `head` are the first bytes, of the kind that they show where the name says another.

    Raises:
        DataError: they cannot be the beginning of rows.
    """
    name = source.name
    if not head.removeprefix(UTF_8_BOM).strip() and len(head) < HEAD_BYTES:
        raise DataError(f"{name} is empty")
    if source.kind in BINARY_KINDS:
        return source
    if archive := next((known for magic, known in ARCHIVE_MAGIC.items() if head.startswith(magic)), None):
        if source.compression:
            raise DataError(f"{name} holds a {archive} archive within the {source.compression} data", "unpack it first")
        ending = next((ending for ending, known in COMPRESSIONS.items() if known == archive), None)
        raise DataError(f"{name} is {archive} data", f"name it {name}{ending}" if ending else "unpack it first")
    if binary := next((kind for kind in BINARY_KINDS if kind == kind_of_binary(head)), None):
        raise DataError(f"{name} is {binary[1:].capitalize()} data", f"let its name end in {binary}")
    if wide := next((known for mark, known in WIDE_BOMS.items() if head.startswith(mark)), None):
        raise DataError(f"{name} is {wide}, not UTF-8", "save it as UTF-8")
    if b"\0" in head and is_binary(head):
        raise DataError(f"{name} is a binary file, not text (byte 0 at offset {head.index(0)})")
    is_array = source.kind in {".jsonl", ".ndjson"} and begins_array(head)
    return replace(source, kind=".json") if is_array else source


def is_binary(head: bytes) -> bool:
    """Whether bytes with a 0 among them are no text at all, or else text with a damaged line."""
    try:
        decoded(head)
    except UnicodeDecodeError:
        return True
    return head.index(0) < head.find(b"\n") or b"\n" not in head


def decoded(head: bytes) -> str:
    """The text of first bytes, of which the last character may be cut."""
    return codecs.getincrementaldecoder("utf-8-sig")().decode(head)


def begins_array(head: bytes) -> bool:
    """Whether rows stand in an array under the name of JSON lines: it does not end on its line, or there is no other line."""
    try:
        first, _, others = decoded(head).lstrip().partition("\n")
        if not first.startswith("["):
            return False
        if not others and len(head) == HEAD_BYTES:
            return True
        json.loads(first)
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc.rstrip())
    except (ValueError, RecursionError):
        return False
    return not others.strip()


def spooled_stdin() -> Source:
    """Standard input as a source, its kind told from its content.

    Raises:
        DataError: nobody writes to it, or it holds nothing that can be rows.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("nothing was piped to standard input", "pipe them in, such as: zcat rows.jsonl.gz | llmft prepare -")
    number, file = tempfile.mkstemp(prefix="llmft-stdin-")
    path = Path(file)
    atexit.register(path.unlink, missing_ok=True)
    try:
        with os.fdopen(number, "wb") as spool:
            beginning = sys.stdin.buffer.read(HEAD_BYTES)
            if not beginning.startswith(tuple(COMPRESSION_MAGIC)):
                # What can hold no rows is refused before all of it, which may have no end, is copied.
                checked(Source(STDIN_SHOWN, path, kind_of_content(beginning)), beginning)
            spool.write(beginning)
            shutil.copyfileobj(sys.stdin.buffer, spool, CHUNK_BYTES)
    except IsADirectoryError as error:
        raise DataError(f"standard input cannot be read: {error.strerror}") from error
    source = Source(STDIN_SHOWN, path, size_bytes=path.stat().st_size)
    head = head_of(source)
    compression = next((known for magic, known in COMPRESSION_MAGIC.items() if head.startswith(magic)), "")
    source = replace(source, compression=compression)
    head = head_of(source) if compression else head
    return checked(replace(source, kind=kind_of_content(head)), head)


def kind_of_binary(head: bytes) -> str | None:
    """The kind of binary table that begins so, if it is one."""
    if head.startswith(b"PAR1"):
        return ".parquet"
    return ".arrow" if head.startswith(ARROW_MAGIC) else None


def kind_of_content(head: bytes) -> str:
    """What a source without a name holds, by its first bytes."""
    if binary := kind_of_binary(head):
        return binary
    text = head.removeprefix(UTF_8_BOM).lstrip()
    if text.startswith((b"{", b"[")):
        return ".json"
    first = text.split(b"\n", 1)[0].decode(errors="replace")
    for kind, separator in ((".csv", ","), (".tsv", "\t")):
        columns = next(csv.reader([first], delimiter=separator), [])
        if len(columns) > 1 and COLUMN_NAMES & {column.strip().lower() for column in columns}:
            return kind
    return ".txt"
