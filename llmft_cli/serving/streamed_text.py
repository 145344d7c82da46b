"""Text that arrives in pieces, without the whitespace around it."""

from __future__ import annotations

from collections.abc import Callable


class Stripped:
    """Passes pieces of text on, so that they make up the whole text stripped: whitespace waits for what follows it."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._begun = False
        self._waiting = ""

    def __call__(self, piece: str) -> None:
        text = self._waiting + piece
        shown = text.rstrip()
        self._waiting = text[len(shown) :]
        if not self._begun:
            shown = shown.lstrip()
        if shown:
            self._begun = True
            self._on_text(shown)
