"""Sections of text, and the formatting of numbers in them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """Rows under a title; without a header, rows are names and values."""

    title: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


def named(title: str, values: Mapping[str, Any]) -> Section:
    """A section of names and values; None values are omitted."""
    return Section(title, [(name, str(value)) for name, value in values.items() if value is not None])


def gibibytes(count: float | None) -> str | None:
    return None if count is None else f"{count / 2**30:.2f} GiB"


def share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def next_command(name: str, run: str) -> Section:
    """The next command, ready to paste into a shell."""
    return named("", {"next": f"llmft {name} {shlex.quote(run)}"})
