"""Atomic writing of files and directories, and their hashes."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmft_cli.base.errors import MachineError, StageError


def check_place(directory: Path) -> None:
    """Fail early if `directory` cannot be created or written.

    Raises:
        StageError: a file is in the way, or its name is too long or not UTF-8, as Arrow and safetensors need it.
        MachineError: it is not writable.
    """
    try:
        str(directory).encode()
        nearest = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not UTF-8"
        raise StageError(f"{str(directory)!r} cannot be a run directory: {reason}", "choose another name") from error
    if not nearest.is_dir():
        raise StageError(f"{directory} cannot be a run directory: {nearest} is a file", "choose another directory")
    if not os.access(nearest, os.W_OK):
        raise MachineError(f"permission denied: {nearest}", "fix its permissions, or keep the run elsewhere")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; it has either its old content or all of the new, even after a crash."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """A new directory that replaces `target` if the block succeeds, and is deleted otherwise.

    Callers hold a lock, so leftovers of a killed process next to `target` are deleted first. If it was killed between
    moving the old directory away and the new one into its place, the old one is put back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.tmp-*"):
        if (leftover / "old").is_dir() and not target.exists():
            (leftover / "old").rename(target)
        shutil.rmtree(leftover, ignore_errors=True)
    room = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
    fresh, old = room / "new", room / "old"
    try:
        fresh.mkdir()
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
    finally:
        shutil.rmtree(room, ignore_errors=True)


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
