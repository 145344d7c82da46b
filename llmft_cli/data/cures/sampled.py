"""The first rows of the data as they were read, to try options on."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmft_cli.data.reading.rows import Row

MOST_UNUSABLE, MOST_USABLE = 48, 16


@dataclass
class SampledRows:
    """The first rows that were not used, and the first that were."""

    unusable: list[Row] = field(default_factory=list)
    usable: list[Row] = field(default_factory=list)

    def add(self, row: Row | None, usable: bool) -> None:
        """Keep a row if there is room; None is a row that was not kept when it was read."""
        rows, most = (self.usable, MOST_USABLE) if usable else (self.unusable, MOST_UNUSABLE)
        if row is not None and len(rows) < most:
            rows.append(row)
