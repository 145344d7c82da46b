"""What gpu-check tells of whatever is wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the command or setting that mends it."""

    what: str
    mend: str
