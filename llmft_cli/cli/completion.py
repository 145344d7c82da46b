"""Shell completion of values: runs, and the choices of settings. Typer completes commands and options.

A shell's script runs `llmft` with `_LLMFT_COMPLETE` in its environment, and takes what is printed as completions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

VARIABLE = "_LLMFT_COMPLETE"  # as Typer names it


def asked_for() -> bool:
    """Whether a shell asks for completions, or for its script."""
    return bool(os.environ.get(VARIABLE))


def one_of(values: Sequence[str]) -> Callable[[str], list[str]]:
    """Completion from a list of values."""

    def matching(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return matching


def run_names(incomplete: str) -> list[str]:
    """Runs under runs/. If none matches, the shell completes paths."""
    from llmft_cli.run_dir.run import RUNS_ROOT, RunDir

    return one_of([str(path) for path in sorted(RUNS_ROOT.glob("*")) if RunDir(path).exists()])(incomplete)
