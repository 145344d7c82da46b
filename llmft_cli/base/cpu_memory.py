"""What the CPU's memory has room for, and how it is held between the steps of a training."""

from __future__ import annotations

import ctypes

SHARE_OF_RAM = 0.25
# Of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def has_room(needed_bytes: int) -> bool:
    """Whether that is at most a quarter of the RAM that is free."""
    import psutil

    return bool(needed_bytes <= psutil.virtual_memory().available * SHARE_OF_RAM)


def keep_freed_memory() -> None:
    """Let the process keep what it frees from now on, to allocate it again.

    glibc returns large tensors to the system, which has to clear every page of the next one: 37,000 to 61,000 pages in a
    step of SmolLM2-135M, 5 and 19% of its time in two pairs of trainings (benchmarks/LOG.md). What is freed while a model
    is loaded is not needed again, so this is for afterwards. Where the C library is another one, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
