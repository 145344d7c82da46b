"""How library code reports what it is doing, independent of how it is shown."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

Unit = Literal["steps", "bytes"]


class Advance(Protocol):
    def __call__(self, steps: int = 1, **fields: float | int | None) -> None:
        """Advance a task by `steps`; `fields` are values to show with it (loss, tokens_per_second, ...)."""


class Reporter(Protocol):
    def note(self, message: str) -> None:
        """Show one line of information."""

    def warn(self, message: str) -> None:
        """Show one line that the user should not miss."""

    def track(self, description: str, total: int, done: int = 0, unit: Unit = "steps") -> AbstractContextManager[Advance]:
        """Show the progress of a task of `total` steps or bytes, `done` of them finished before it started."""


class Silent:
    """A reporter that shows nothing, for library use and tests."""

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...

    def track(self, description: str, total: int, done: int = 0, unit: Unit = "steps") -> AbstractContextManager[Advance]:
        def advance(steps: int = 1, **fields: float | int | None) -> None: ...

        return nullcontext(advance)
