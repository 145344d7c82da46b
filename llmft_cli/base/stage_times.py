"""The wall time of a command by stage, from the start of its process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# If the system does not tell when the process started, this is the closest: the package's own modules come first.
IMPORTED = time.monotonic()
# In /proc/self/stat, behind the name: the ticks between the start of the machine and that of the process.
STARTED_FIELD = 19
TICKS_PER_SECOND = 100  # of what Linux tells programs, on every processor that torch supports


class StageTimes:
    """Seconds by stage. One stage ends where the next one begins, so that together they are the whole time."""

    def __init__(self, stage: str, started: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        """Start with a stage.

        Args:
            started: when it began, as a time of `now`; None is this moment.
        """
        self._now = now
        self._since = now() if started is None else started
        self._stage = stage
        self._seconds: dict[str, float] = {}

    def enter(self, stage: str) -> None:
        """End the current stage, and begin or go on with another one."""
        moment = self._now()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + moment - self._since
        self._stage, self._since = stage, moment

    @contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """A stage within the current one, whose time does not count there."""
        around = self._stage
        self.enter(stage)
        try:
            yield
        finally:
            self.enter(around)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage until now, in the order in which the stages ended first."""
        self.enter(self._stage)
        return dict(self._seconds)


def process_started() -> float:
    """When this process started, as a time of `time.monotonic`; on systems that do not tell, when llmft was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[STARTED_FIELD])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_PER_SECOND
    except (OSError, AttributeError, ValueError, IndexError):
        return IMPORTED
    return time.monotonic() - age
