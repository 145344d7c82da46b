"""Where models are loaded: in one process, on Linux. Told before anything heavy is imported."""

from __future__ import annotations

import os
import sys

from llmft_cli.base.errors import MachineError, UsageError

# By `sys.platform`: what is missing there, and where to go instead.
MISSING = {
    "darwin": (
        "macOS has no CUDA, and computing on its CPU is untested",
        "use a Linux machine or container; runs prepared here can be copied there",
    ),
    "win32": (
        "Triton, which compiles the GPU kernels, is not released for Windows, and doing without it is untested",
        "use WSL 2, a container or a Linux machine; runs prepared here can be copied there",
    ),
}


def check_one_process(command: str) -> None:
    """Refuse to be one of several processes: each would train a model of its own.

    Raises:
        UsageError: WORLD_SIZE, which torchrun and the like set, is above 1.
    """
    processes = os.environ.get("WORLD_SIZE", "")
    if processes.isdecimal() and int(processes) > 1:
        raise UsageError(
            f"WORLD_SIZE is {processes}: `llmft {command}` supports one process only",
            f"start it without torchrun: `llmft {command} ...`; where the system sets WORLD_SIZE, unset it",
        )


def check_platform(command: str) -> None:
    """Refuse to load a model on an operating system for which llmft is not made.

    Raises:
        MachineError: this is one.
    """
    if missing := missing_here():
        raise MachineError(f"`llmft {command}` needs Linux: {missing[0]}", missing[1])


def missing_here() -> tuple[str, str] | None:
    """What this operating system lacks for loading models, and where to go instead; None where it lacks nothing."""
    return MISSING.get(sys.platform)
