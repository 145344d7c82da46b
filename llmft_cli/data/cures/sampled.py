"""The first rows of the data as they were read, to try options on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmft_cli.data.reading.rows import Row

MOST_UNUSABLE, MOST_USABLE = 48, 16
# Trying takes time that grows with the text.
MOST_CHARACTERS = 1 << 21


@dataclass
class SampledRows:
    """The first rows that were not used, and the first that were, without very long ones.

    Attributes:
        characters: of all of them.
    """

    unusable: list[Row] = field(default_factory=list)
    usable: list[Row] = field(default_factory=list)
    characters: int = 0

    def add(self, row: Row | None, usable: bool) -> None:
        """Keep a row if there is room; None is a row that was not kept when it was read."""
        rows, most = (self.usable, MOST_USABLE) if usable else (self.unusable, MOST_UNUSABLE)
        if row is None or len(rows) >= most:
            return
        characters = characters_in(row.value)
        if self.characters + characters <= MOST_CHARACTERS:
            self.characters += characters
            rows.append(row)


def characters_in(value: Any) -> int:
    """The number of characters in the texts of a value."""
    count, left = 0, [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, list | dict):
            count += len(part)
            left += part.values() if isinstance(part, dict) else part
    return count
