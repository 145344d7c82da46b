"""How library code tells what it is doing, without knowing who shows it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

Unit = Literal["steps", "bytes"]


class Advance(Protocol):
    def __call__(self, steps: int = 1, **fields: float | int | None) -> None:
        """Move a task on by `steps`; `fields` are figures to show beside it (loss, tokens_per_second, ...)."""


class Reporter(Protocol):
    def note(self, message: str) -> None:
        """One line of narration."""

    def warn(self, message: str) -> None:
        """One line that the user should not miss."""

    def track(self, description: str, total: int, done: int = 0, unit: Unit = "steps") -> AbstractContextManager[Advance]:
        """A task of `total` steps or bytes, `done` of them before it began, shown while the context is open."""


class Silent:
    """A reporter that shows nothing, for library use and tests."""

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...

    def track(self, description: str, total: int, done: int = 0, unit: Unit = "steps") -> AbstractContextManager[Advance]:
        def advance(steps: int = 1, **fields: float | int | None) -> None: ...

        return nullcontext(advance)
