"""Host memory: how much may be used, and keeping freed memory between training steps."""

from __future__ import annotations

import ctypes

SHARE_OF_RAM = 0.25
# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def has_room(needed_bytes: int) -> bool:
    """Whether `needed_bytes` is at most a quarter of the available RAM."""
    import psutil

    return bool(needed_bytes <= psutil.virtual_memory().available * SHARE_OF_RAM)


def keep_freed_memory() -> None:
    """From now on, keep freed memory in the process for reuse. Does nothing without glibc.

    glibc returns large tensors to the system, which must clear every page of the next allocation: 37,000 to 61,000 pages
    in a step of SmolLM2-135M, 5 and 19% of its time in two pairs of training runs (benchmarks/LOG.md). Call this after the
    model is loaded: memory freed during loading is not needed again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
