"""The number of compute threads on the CPU: as many as there are free cores.

torch's threads wait for each other after every operation, so one that shares its core with another process delays all of
them. Next to one busy process, two threads on two cores trained at a third of their undisturbed speed and generated at a
tenth; one thread trained at 0.57 of it and generated at full speed (benchmarks/LOG.md).
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

SAMPLING_SECONDS = 0.3
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def use_free_cores(device: torch.device, reporter: Reporter) -> None:
    """On the CPU, limit torch to as many threads as there are free cores, unless the user set OMP_NUM_THREADS."""
    import torch

    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    all_threads, busy = torch.get_num_threads(), busy_cores()
    threads = max(1, min(round(all_threads - busy), allowed_cores()))
    if threads < all_threads:
        reporter.note(
            f"computing with {threads} of {all_threads} threads: other processes use {busy:.1f} cores, this one may use "
            f"{allowed_cores()} (to override: OMP_NUM_THREADS)"
        )
        torch.set_num_threads(threads)


def busy_cores() -> float:
    """Cores that other processes use, sampled while this one sleeps."""
    import psutil

    before = psutil.cpu_times()
    started = time.perf_counter()
    time.sleep(SAMPLING_SECONDS)
    used = sum(getattr(psutil.cpu_times(), name) - getattr(before, name) for name in ("user", "nice", "system"))
    return float(used / (time.perf_counter() - started))


def allowed_cores() -> int:
    """The cgroup's CPU limit in whole cores, as set by `docker run --cpus`; all cores if there is none."""
    try:
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return os.cpu_count() or 1
    return os.cpu_count() or 1 if quota == "max" else max(1, math.floor(int(quota) / int(period)))
