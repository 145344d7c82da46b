"""Checks that a file is whole and of its kind, before a library reads it and fails in its own words, or silently."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import LlmftError, first_line, from_library_error, from_os_error, is_interrupt

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
SIZE_BYTES = 8


class DamagedFile(Exception):
    """A file is missing, damaged, or not what its name says.

    Args:
        file: its path.
        reason: what is wrong with it; follows the path in a message.
        cure: what restores it, if the content of the file tells.
    """

    def __init__(self, file: Path, reason: str, cure: str = "") -> None:
        super().__init__(f"{file} {reason}")
        self.file = file
        self.reason = reason
        self.cure = cure


def check_start(file: Path) -> bytes:
    """The first bytes of a file, as many as tell a Git LFS pointer.

    Raises:
        DamagedFile: there is no file, it is empty, or Git LFS has not fetched it.
    """
    if file.is_dir():
        raise DamagedFile(file, "is a directory, not a file")
    try:
        with file.open("rb") as content:
            start = content.read(len(LFS_POINTER))
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedFile(file, "is missing") from None
    if not start:
        raise DamagedFile(file, "is empty")
    if start == LFS_POINTER:
        raise DamagedFile(file, "is a Git LFS pointer, not the file itself", lfs_cure(file))
    return start


def lfs_cure(file: Path) -> str:
    """What replaces a Git LFS pointer by the file itself."""
    return f"fetch the files that Git LFS keeps: git -C {shlex.quote(str(file.parent))} lfs pull"


def read_text(file: Path) -> str:
    """The content of a text file.

    Raises:
        DamagedFile: as `check_start`, or it is not UTF-8.
    """
    check_start(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(file, f"is damaged: it is not UTF-8 (byte {error.start})") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DamagedFile: as `read_text`, or it does not hold a JSON object.
    """
    return parse_json(file, read_text(file))


def parse_json(file: Path, text: str, place: str = "") -> dict[str, Any]:
    """The JSON object in a part of a file.

    Args:
        place: of the text in the file, for messages.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(file, f"is damaged: {place}not JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise DamagedFile(file, f"is damaged: {place}a JSON object is expected, and this is a {type(value).__name__}")
    return value


def read_safetensors_header(file: Path) -> tuple[bytes, dict[str, Any]]:
    """The header of a safetensors file, as it is and as an object: dtype, shape and data_offsets by tensor.

    The file has 8 bytes with the length of the header, little-endian, the header, and the tensors
    (https://huggingface.co/docs/safetensors, "Format"), so the header tells the size of the file.

    Raises:
        DamagedFile: as `check_start`, it is another kind of file, or it is cut off or too long.
    """
    check_start(file)
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(SIZE_BYTES), "little")
        if SIZE_BYTES + length > size:
            content.seek(SIZE_BYTES)
            cut = content.read(1) == b"{"
            raise DamagedFile(file, f"is cut off at {size:,} bytes" if cut else "is not a safetensors file")
        header = content.read(length)
    tensors = tensors_of(file, header)
    end = SIZE_BYTES + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size != end:
        state = "is cut off" if size < end else "has bytes after its end"
        raise DamagedFile(file, f"{state}: it has {size:,} bytes, and its header tells of {end:,}")
    return header, tensors


def tensors_of(file: Path, header: bytes) -> dict[str, Any]:
    """The tensors in a safetensors header, whose offsets are checked."""
    try:
        tensors = parse_json(file, header.decode("utf-8"), "in its header, ")
    except UnicodeDecodeError as error:
        raise DamagedFile(file, "is damaged: its header is not UTF-8") from error
    tensors.pop("__metadata__", None)
    for name, tensor in tensors.items():
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        integers = isinstance(offsets, list) and [type(offset) for offset in offsets] == [int, int]
        if not integers or not 0 <= tensor["data_offsets"][0] <= tensor["data_offsets"][1]:
            raise DamagedFile(file, f"is damaged: its header has no place for the tensor {name}")
    return tensors


@contextmanager
def reading_foreign(file: Path) -> Iterator[None]:
    """Take whatever a library raises while it reads a file or folder as a fault of its content.

    Libraries meet damaged content with any kind of error. Those that are the machine's (memory, disk,
    permissions) and those of ours pass.

    Raises:
        DamagedFile: the library failed.
    """
    try:
        yield
    except (LlmftError, DamagedFile):
        raise
    except Exception as error:
        of_the_machine = (isinstance(error, OSError) and from_os_error(error)) or from_library_error(error)
        if of_the_machine or is_interrupt(error):
            raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise DamagedFile(file, f"cannot be read: {kind}{first_line(error)}") from error
