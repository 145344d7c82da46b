"""A place in a text as one line that can be shown anywhere."""

from __future__ import annotations

import re

from llmft_cli.data.checks.secrets import MASK, masked

EXCERPT = 90
# A private key is no longer than this, so that one is recognised whose beginning lies before the excerpt.
CONTEXT = 8000
SPACE = re.compile(r"[ \t\r\n]+")
MASKED = re.compile(f"{MASK}{{4,}}")


def context(text: str, start: int, end: int) -> tuple[str, int, int]:
    """The part of a text that an excerpt may need, and the place in that."""
    first = max(0, start - CONTEXT)
    return text[first : end + CONTEXT], start - first, end - first


def excerpt(text: str, start: int, end: int) -> str:
    """What stands around a place: on one line, secrets masked, what is not printable spelled out."""
    end = min(end, start + EXCERPT)
    before = (EXCERPT - (end - start)) // 3
    first = max(0, start - before)
    last = first + EXCERPT
    line = SPACE.sub(" ", masked(text)[first:last]).strip(" ")
    shown = "".join(visible(character) for character in MASKED.sub(MASK * 4, line))
    return ("…" if first else "") + shown + ("…" if last < len(text) else "")


def visible(character: str) -> str:
    return character if character.isprintable() else f"<U+{ord(character):04X}>"
