"""Safe text for terminals and pipes, and loss masks that are readable without colours."""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmft_cli.data.report.samples import Sample

# The second pair is that of `git diff --word-diff`.
MARKS, ASCII_MARKS = ("⟦", "⟧"), ("{+", "+}")


def printable(text: str) -> str:
    """Text with control characters other than newline and tab escaped (\\x1b)."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs") or character in "\u200d\u200c"
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def marks(encoding: str) -> tuple[str, str]:
    """The marks around supervised text: white square brackets if the encoding has them."""
    try:
        "".join(MARKS).encode(encoding)
    except UnicodeEncodeError:
        return ASCII_MARKS
    return MARKS


def marked(sample: Sample, opening: str, closing: str) -> str:
    """A sample's text with marks around the supervised parts.

    A character that would begin text like a mark or a special token of the sample is escaped
    (`\\u003c|im_end|>`), so that everything that looks like one is one.
    """
    spellings = {opening, closing, *(segment.text for segment in sample.segments if segment.special)}
    misleading = re.compile(f"(?={'|'.join(map(re.escape, spellings))}).", re.DOTALL)

    def shown(text: str) -> str:
        return misleading.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

    runs = []
    for supervised, run in groupby(sample.segments, lambda segment: segment.supervised):
        text = "".join(printable(segment.text if segment.special else shown(segment.text)) for segment in run)
        runs.append(f"{opening}{text}{closing}" if supervised else text)
    return "".join(runs)
