"""What the first bytes of a source tell: its encoding, its type, or that it holds no rows."""

from __future__ import annotations

import codecs
import csv
import json
from dataclasses import replace
from pathlib import Path

from llmft_cli.base.errors import DataError
from llmft_cli.base.file_checks import LFS_POINTER, lfs_cure
from llmft_cli.data.reading.compression import BINARY_SUFFIXES, COMPRESSIONS, UTF_8_BOM
from llmft_cli.data.reading.json_layouts import layout_of
from llmft_cli.data.reading.json_text import beginning_of
from llmft_cli.data.reading.rows import UTF_8, Source

HEAD_BYTES = 8192
# UTF-32 first: its mark begins with that of UTF-16.
WIDE_BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
LEAST_WIDE_BYTES = 8  # fewer may be anything
COMPRESSION_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
ARCHIVE_MAGIC = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    **COMPRESSION_MAGIC,
}
ARROW_MAGIC = (b"ARROW1", b"\xff\xff\xff\xff")
EXCEL_MARKS = (b"[Content_Types].xml", b"xl/")
PAGE_STARTS = {b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"<?xml": "XML"}
PROSE = {".txt", ".md"}
COLUMN_NAMES = {"messages", "conversations", "prompt", "completion", "instruction", "output", "question", "answer", "text"}


def detected(source: Source, head: bytes) -> Source:
    """The source, with the encoding and the type that its first bytes (`head`) show if nothing or something else is said.

    Raises:
        DataError: the bytes cannot be the beginning of rows.
    """
    name = source.name
    if not head.removeprefix(UTF_8_BOM).strip() and len(head) < HEAD_BYTES:
        raise DataError(f"{name} is empty")
    refuse_other_files(source, head)
    refuse_packed(source, head)
    if source.suffix in BINARY_SUFFIXES:
        return source
    source, text = with_encoding(source, head)
    if b"\0" in text and is_binary(text):
        raise DataError(f"{name} is a binary file, not text (NUL byte at offset {head.index(0)})")
    is_json = source.suffix in {".jsonl", ".ndjson"} and is_one_value(text)
    return replace(source, suffix=".json") if is_json else source


def refuse_other_files(source: Source, head: bytes) -> None:
    """Refuse what stands in the place of the data.

    Raises:
        DataError: it is a pointer of Git LFS, or a page.
    """
    if head.startswith(LFS_POINTER):
        raise DataError(f"{source.name} is a Git LFS pointer, not the data itself", lfs_cure(Path(source.name)))
    start = head.removeprefix(UTF_8_BOM).lstrip()[:16].lower()
    page = next((known for mark, known in PAGE_STARTS.items() if start.startswith(mark)), None)
    if page and source.suffix not in PROSE:
        raise DataError(
            f"{source.name} is {page}, not data: a download may have saved an error or a login page",
            "download the file itself; on the Hub, its address has /resolve/ where that of its page has /blob/",
        )


def refuse_packed(source: Source, head: bytes) -> None:
    """Refuse archives and tables under the name of text.

    Raises:
        DataError: the bytes are the beginning of one.
    """
    name = source.name
    if archive := next((known for magic, known in ARCHIVE_MAGIC.items() if head.startswith(magic)), None):
        if source.compression:
            raise DataError(f"{name} contains a {archive} archive inside the {source.compression} data", "unpack it first")
        if archive == "zip" and any(mark in head for mark in EXCEL_MARKS):
            raise DataError(f"{name} is an Excel workbook", "save its sheet as CSV")
        ending = next((ending for ending, known in COMPRESSIONS.items() if known == archive), None)
        raise DataError(f"{name} is {archive} data", f"rename it to {name}{ending}" if ending else "unpack it first")
    if (binary := binary_suffix(head)) and binary != source.suffix:
        raise DataError(f"{name} is {binary[1:].capitalize()} data", f"rename it to end in {binary}")


def with_encoding(source: Source, head: bytes) -> tuple[Source, bytes]:
    """The source with the encoding that its first bytes show unless it is known, and these bytes as UTF-8.

    Raises:
        DataError: they are UTF-16 or UTF-32, and the source is said to be UTF-8.
    """
    wide = wide_encoding(head)
    if wide and source.encoding == UTF_8:
        raise DataError(f"{source.name} is {wide[:6].upper()}, not UTF-8", "save it as UTF-8")
    source = replace(source, encoding=source.encoding or wide)
    if source.encoding in ("", UTF_8):
        return source, head
    try:
        return source, codecs.getincrementaldecoder(source.encoding)().decode(head).encode()
    except UnicodeError:  # which the reader tells with its line
        return source, head


def wide_encoding(head: bytes) -> str:
    """UTF-16 or UTF-32, by the byte order mark or where the NUL bytes are; empty if it is neither."""
    if known := next((known for mark, known in WIDE_BOMS.items() if head.startswith(mark)), ""):
        return known
    first = head.find(b"\0")
    if first < 0 or len(head) < LEAST_WIDE_BYTES or head[1 - first % 2 :: 2].count(0):
        return ""
    known = "utf-16-le" if first % 2 else "utf-16-be"
    try:
        text = codecs.getincrementaldecoder(known)().decode(head)
    except UnicodeDecodeError:
        return ""
    return known if "".join(text.split()).isprintable() else ""


def is_binary(head: bytes) -> bool:
    """Whether bytes with a NUL among them are binary data, and not text with one damaged line."""
    try:
        decoded(head)
    except UnicodeDecodeError:
        return True
    return head.index(0) < head.find(b"\n") or b"\n" not in head


def decoded(head: bytes) -> str:
    """The text of the first bytes; the last character may be incomplete."""
    return codecs.getincrementaldecoder("utf-8-sig")().decode(head)


def is_one_value(head: bytes) -> bool:
    """Whether a file named as JSON Lines is an array: one that goes on after the first line, or is the only line.

    Also an object that begins with a brace on a line of its own, or holds the rows in a layout of `json_layouts`.
    """
    try:
        first, _, others = head.removeprefix(UTF_8_BOM).decode(errors="replace").lstrip().partition("\n")
        if first.strip() == "{" and others.lstrip().startswith('"'):
            return True
        if first.startswith("{"):
            value, _ = beginning_of(first, 0)
            return layout_of(value) is not None
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


def binary_suffix(head: bytes) -> str | None:
    """The suffix of the binary table that begins with these bytes, if it is one."""
    if head.startswith(b"PAR1"):
        return ".parquet"
    return ".arrow" if head.startswith(ARROW_MAGIC) else None


def suffix_of_content(head: bytes) -> str:
    """The suffix of a source without a name, by its first bytes."""
    if binary := binary_suffix(head):
        return binary
    text = head.removeprefix(UTF_8_BOM).lstrip()
    if text.startswith((b"{", b"[")):
        return ".json"
    first = text.split(b"\n", 1)[0].decode(errors="replace")
    for suffix, separator in ((".csv", ","), (".csv", ";"), (".tsv", "\t")):
        columns = next(csv.reader([first], delimiter=separator), [])
        if len(columns) > 1 and COLUMN_NAMES & {column.strip().lower() for column in columns}:
            return suffix
    return ".txt"
