"""What flows from the readers: rows, rows that cannot be used, and the sources of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row as read. `line` counts from 1 (the row's number where the format has no lines)."""

    source: str
    line: int
    value: Any


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    source: str
    line: int
    reason: str


@dataclass(frozen=True)
class Source:
    """Something that rows are read from: a file, or a Hub dataset where `path` is None.

    Attributes:
        name: as it is shown; always valid Unicode, unlike a path.
        path: the file on disk; for standard input a temporary one.
        kind: what the file holds, as a file type (`.jsonl`), without the compression's.
        compression: `gzip`, `zstd` or nothing.
        size_bytes: of the file on disk.
    """

    name: str
    path: Path | None
    kind: str = ""
    compression: str = ""
    size_bytes: int = 0
