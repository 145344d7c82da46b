"""A problem that gpu-check reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the command or setting that fixes it (`mend`; empty if there is nothing to fix)."""

    what: str
    mend: str
