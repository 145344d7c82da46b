"""What the readers produce: usable rows, unusable rows, and the source of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmft_cli.base.errors import DataError

UTF_8 = "utf-8"


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
        encoding: of a text, as Python names it; empty as long as it is UTF-8 unless the content shows another.
        columns: names that the user gives to columns (`--columns`), so they name columns even if no format reads them.
    """

    name: str
    path: Path | None
    suffix: str = ""
    compression: str = ""
    size_bytes: int = 0
    encoding: str = ""
    columns: frozenset[str] = frozenset()


class UndecodableText(DataError):
    """A source has bytes that its encoding does not have."""
