"""How many threads compute on the CPU: as many as there are cores that are free.

torch's threads wait for each other after every operation, so that one which has to share its core with another process
holds all of them up: beside one busy process, two threads on two cores trained at a third of their speed alone and wrote
answers at a tenth, where one thread did at 0.57 and at all of it (benchmarks/LOG.md).
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.base.reporter import Reporter

if TYPE_CHECKING:
    import torch

LOOKING_SECONDS = 0.3
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def use_free_cores(device: torch.device, reporter: Reporter) -> None:
    """Let torch compute with as many threads as cores are free now, where it is the CPU that computes.

    A number that the user has set with OMP_NUM_THREADS stays.
    """
    import torch

    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    all_threads, busy = torch.get_num_threads(), busy_cores()
    threads = max(1, min(round(all_threads - busy), allowed_cores()))
    if threads < all_threads:
        reporter.note(
            f"computing with {threads} of {all_threads} threads: other processes use {busy:.1f} cores, and this one may use "
            f"{allowed_cores()} (OMP_NUM_THREADS overrides)"
        )
        torch.set_num_threads(threads)


def busy_cores() -> float:
    """Cores that other processes use, by what they do while this one waits."""
    import psutil

    before = psutil.cpu_times()
    started = time.perf_counter()
    time.sleep(LOOKING_SECONDS)
    used = sum(getattr(psutil.cpu_times(), name) - getattr(before, name) for name in ("user", "nice", "system"))
    return float(used / (time.perf_counter() - started))


def allowed_cores() -> int:
    """Cores whose time the process's control group may use at most, as `docker run --cpus` sets it; many without a limit."""
    try:
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return os.cpu_count() or 1 if quota == "max" else max(1, math.floor(int(quota) / int(period)))
