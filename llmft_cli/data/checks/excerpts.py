"""Excerpts around a position in a text: one line, safe to show anywhere."""

from __future__ import annotations

import re

from llmft_cli.data.checks.secrets import MASK, masked

EXCERPT = 90
# Longer than a private key, so that one that begins before the excerpt is still recognised.
CONTEXT = 8000
SPACE = re.compile(r"[ \t\r\n]+")
MASKED = re.compile(f"{MASK}{{4,}}")


def context(text: str, start: int, end: int) -> tuple[str, int, int]:
    """The part of a text that an excerpt may need, and the span within that part."""
    first = max(0, start - CONTEXT)
    return text[first : end + CONTEXT], start - first, end - first


def excerpt(text: str, start: int, end: int) -> str:
    """The text around a span on one line, with secrets masked and unprintable characters escaped."""
    end = min(end, start + EXCERPT)
    before = (EXCERPT - (end - start)) // 3
    first = max(0, start - before)
    last = first + EXCERPT
    line = SPACE.sub(" ", masked(text)[first:last]).strip(" ")
    shown = "".join(visible(character) for character in MASKED.sub(MASK * 4, line))
    return ("…" if first else "") + shown + ("…" if last < len(text) else "")


def visible(character: str) -> str:
    return character if character.isprintable() else f"<U+{ord(character):04X}>"
