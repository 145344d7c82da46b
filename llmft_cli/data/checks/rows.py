"""Input of the checks: a batch of rows, and their texts joined so that they can be searched at once."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


class CheckedRow(NamedTuple):
    """One row, as the checks see it.

    Attributes:
        texts: all messages' contents, or the document's text.
        answers: the assistant's contents; none for a document.
        supervised: number of supervised tokens.
        edges: where supervised spans begin and end, for a row that is given as token ids.
    """

    source: str
    line: int
    texts: Sequence[str]
    answers: Sequence[str]
    input_ids: Sequence[int]
    supervised: int
    edges: Sequence[int] = ()


class Match(NamedTuple):
    """A match: the row of the batch, the text, and the span in the text."""

    row: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Texts:
    """Texts of a batch of rows, and the row number of each."""

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
    """Encoded texts joined into one, so that they can be searched at once.

    Attributes:
        text: the texts, separated by line feeds.
        starts: where each text begins, and one more at the end.
        non_ascii: the numbers of the texts that are not ASCII.
    """

    text: bytes
    starts: list[int]
    non_ascii: list[int]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Joined:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        starts = list(accumulate([len(text) + 1 for text in encoded], initial=0))
        return cls(b"\n".join(encoded), starts, [number for number, text in enumerate(encoded) if not text.isascii()])

    def at(self, position: int) -> int:
        """The number of the text at a position."""
        return bisect_right(self.starts, position) - 1

    def holding(self, needle: bytes) -> Iterator[int]:
        """The numbers of the texts that contain a needle, each once."""
        position = self.text.find(needle)
        while position >= 0:
            number = self.at(position)
            yield number
            position = self.text.find(needle, self.starts[number + 1])

    def matching(self, pattern: re.Pattern[bytes]) -> Iterator[int]:
        """The numbers of the texts in which a pattern matches, one for each match."""
        return (self.at(match.start()) for match in pattern.finditer(self.text))

    def lowered(self) -> Joined:
        """A copy with A to Z in lower case."""
        return Joined(self.text.lower(), self.starts, self.non_ascii)
