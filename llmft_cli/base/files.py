"""Atomic writing of files and directories, and their hashes."""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmft_cli.base.errors import MachineError, StageError

TEMPORARY = ".tmp-"  # in the names of all that a killed process may leave


def check_place(directory: Path) -> None:
    """Fail early if `directory` cannot be created or written.

    Raises:
        StageError: a file is in the way, or its name is too long.
        MachineError: it is not writable.
    """
    try:
        nearest = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    except OSError as error:
        raise StageError(f"{directory} cannot be a run directory: {error.strerror}", "choose another name") from error
    if not nearest.is_dir():
        raise StageError(f"{directory} cannot be a run directory: {nearest} is a file", "choose another directory")
    if not os.access(nearest, os.W_OK):
        raise MachineError(f"permission denied: {nearest}", "fix its permissions, or keep the run elsewhere")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; it has either its old content or all of the new, even after a crash."""
    temporary = temporary_name(path)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_directory(target: Path, keep_old: bool = False) -> Iterator[Path]:
    """A new directory that replaces `target` if the block succeeds, and is deleted otherwise.

    Callers hold a lock, so leftovers of a killed process next to `target` are deleted first. If it was killed between
    moving the old directory away and the new one into its place, the old one is put back.

    Args:
        keep_old: keep the old directory for `put_back`, until `remove_leftovers`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, target.name)
    room = temporary_name(target)
    fresh, old = room / "new", room / "old"
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for file in fresh.rglob("*"):
            # safetensors' files are readable by their owner only; everyone who can open the run may read it.
            file.chmod(0o755 if file.is_dir() else 0o644)
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
    except BaseException:
        discard(room)
        raise
    if not (keep_old and old.exists()):
        discard(room)


def put_back(target: Path) -> None:
    """Undo the replacement of a directory, if the old one was kept; the new one is deleted."""
    for room in leftovers_in(target.parent, target.name):
        if (room / "old").is_dir():
            if target.exists():
                target.rename(room / "undone")
            (room / "old").rename(target)
            discard(room)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes have left in a folder, or of the file or directory of this name.

    An old directory whose place is empty is put back.
    """
    for leftover in leftovers_in(folder, name):
        target = folder / leftover.name[1:].rpartition(TEMPORARY)[0]
        if (leftover / "old").is_dir() and not target.exists():
            (leftover / "old").rename(target)
        discard(leftover)


def temporary_name(path: Path) -> Path:
    """A free name beside `path`. It is known before anything is made of it, so an interrupt at any moment can undo that."""
    return path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(4)}")


def leftovers_in(folder: Path, name: str | None = None) -> list[Path]:
    return list(folder.glob(f".{'*' if name is None else glob.escape(name)}{TEMPORARY}*"))


def discard(path: Path) -> None:
    """Delete a directory or file, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """sha256 of a file, or of a directory's file names and contents."""
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()
