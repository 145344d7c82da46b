"""What the readers produce: usable rows, unusable rows, and the source of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row as read. `line` counts from 1 (the row number if the format has no lines)."""

    source: str
    line: int
    value: Any


@dataclass(frozen=True)
class BadRow:
    """An unusable row, and why."""

    source: str
    line: int
    reason: str


@dataclass(frozen=True)
class Source:
    """Something to read rows from: a file, or a Hub dataset if `path` is None.

    Attributes:
        name: for display; always valid Unicode, unlike a path.
        path: the file on disk; for standard input a temporary one.
        suffix: the file type (`.jsonl`), without the compression suffix.
        compression: `gzip`, `zstd` or empty.
        size_bytes: size on disk.
    """

    name: str
    path: Path | None
    suffix: str = ""
    compression: str = ""
    size_bytes: int = 0
