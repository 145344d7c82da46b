"""What checks look at: a batch of rows, and texts joined so that one search goes through all."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


class CheckedRow(NamedTuple):
    """What the checks see of one row.

    Attributes:
        texts: all messages' contents, or the document's text.
        answers: the assistant's contents; none for a document.
        supervised: how many tokens are learned from.
    """

    source: str
    line: int
    texts: Sequence[str]
    answers: Sequence[str]
    input_ids: Sequence[int]
    supervised: int


class Hit(NamedTuple):
    """Something found: in which row of the batch, in which text, and where in that."""

    row: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Texts:
    """Texts of a batch of rows, and the row that each is of."""

    texts: list[str]
    rows: list[int]

    @classmethod
    def of(cls, groups: Iterable[Sequence[str]]) -> Texts:
        texts: list[str] = []
        rows: list[int] = []
        for row, group in enumerate(groups):
            texts += group
            rows += [row] * len(group)
        return cls(texts, rows)


@dataclass(frozen=True)
class Joined:
    """Encoded texts joined in one, to be searched at once.

    Attributes:
        text: the texts, with a line feed between.
        starts: where each text begins, and where one after the last would.
        foreign: the numbers of the texts that are not ASCII.
    """

    text: bytes
    starts: list[int]
    foreign: list[int]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Joined:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        starts = list(accumulate([len(text) + 1 for text in encoded], initial=0))
        return cls(b"\n".join(encoded), starts, [number for number, text in enumerate(encoded) if not text.isascii()])

    def at(self, position: int) -> int:
        """The number of the text that lies at a position."""
        return bisect_right(self.starts, position) - 1

    def holding(self, needle: bytes) -> Iterator[int]:
        """The numbers of the texts that hold a needle, each once."""
        position = self.text.find(needle)
        while position >= 0:
            number = self.at(position)
            yield number
            position = self.text.find(needle, self.starts[number + 1])

    def matching(self, pattern: re.Pattern[bytes]) -> Iterator[int]:
        """The numbers of the texts in which a pattern matches, one for each match."""
        return (self.at(match.start()) for match in pattern.finditer(self.text))

    def lowered(self) -> Joined:
        """The same with small letters for A to Z."""
        return Joined(self.text.lower(), self.starts, self.foreign)
