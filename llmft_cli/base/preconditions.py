"""Models are loaded in one process, on Linux. These checks run before any heavy import."""

from __future__ import annotations

import os
import sys

from llmft_cli.base.errors import MachineError, UsageError

# By `sys.platform`: what is missing there, and what to use instead.
MISSING = {
    "darwin": (
        "macOS has no CUDA, and computing on its CPU is untested",
        "use a Linux machine or container; runs prepared here can be copied there",
    ),
    "win32": (
        "Triton, which compiles the GPU kernels, is not released for Windows, and computing without it is untested",
        "use WSL 2, a container or a Linux machine; runs prepared here can be copied there",
    ),
}


def check_one_process(command: str) -> None:
    """Check that this is the only process: each of several would train its own model.

    Raises:
        UsageError: WORLD_SIZE, set by torchrun and the like, is above 1.
    """
    processes = os.environ.get("WORLD_SIZE", "")
    if processes.isdecimal() and int(processes) > 1:
        raise UsageError(
            f"WORLD_SIZE is {processes}: `llmft {command}` supports one process only",
            f"start it without torchrun: `llmft {command} ...`; if the system sets WORLD_SIZE, unset it",
        )


def check_platform(command: str) -> None:
    """Check that llmft supports loading models on this operating system.

    Raises:
        MachineError: it does not.
    """
    if missing := missing_here():
        raise MachineError(f"`llmft {command}` needs Linux: {missing[0]}", missing[1])


def missing_here() -> tuple[str, str] | None:
    """What this operating system lacks for loading models, and what to use instead; None if nothing."""
    return MISSING.get(sys.platform)
