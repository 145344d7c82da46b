"""What can be wrong with a file, and what must hold for a command that meets it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

DOCUMENTED_CODES = {0, 2, 3, 4, 5, 6}
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1000\n"


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(share: float) -> Callable[[Path], None]:
    def truncate(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    truncate.__name__ = f"truncated at {share:.0%}"
    return truncate


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path) -> None:
    """For processes that are started unprivileged."""
    path.chmod(0)


def lfs_pointer(path: Path) -> None:
    path.write_text(LFS_POINTER)


FAULTS = (missing, empty, truncated(0.1), truncated(0.5), truncated(0.95), flipped, a_directory, unreadable, lfs_pointer)


def contents(folder: Path, ignored: Iterable[str] = ()) -> dict[str, bytes]:
    """The files of a folder by relative path, without those of which a part of the path is ignored."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and not set(file.relative_to(folder).parts) & set(ignored):
            found[name] = file.read_bytes()
    return found


def check_outcome(done: subprocess.CompletedProcess[str], told: str) -> None:
    """The command has ended in a documented way: done, or with one error that names what is wrong."""
    said = f"{told}: exit {done.returncode}\n{done.stderr}"
    assert done.returncode in DOCUMENTED_CODES, said
    assert "Traceback" not in done.stderr, said
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == (done.returncode != 0), said
    assert len([line for line in done.stderr.splitlines() if line.startswith("hint: ")]) <= len(errors), said


def replaced_by(copy: Path, original: Path) -> None:
    """Make a folder like another again."""
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(original, copy)
