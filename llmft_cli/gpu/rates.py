"""A device's measured matrix product rate in each type, and its memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

from llmft_cli.settings.compute_types import BF16, FP32, TORCH_NAMES, is_slow

TIMED_SECONDS = 0.1
MOST_REPEATS = 50
# Large enough to reach the full rate of the largest GPUs and to exceed their caches; a few hundred MB in total.
MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
# fp32 runs at about a tenth of the 16-bit rate.
FP32_MATRIX_SIZE = {"cuda": 4096, "cpu": 512}
# For a type without CPU instructions: a product of size 512 would take a second, and this size shows the same rate.
SLOW_MATRIX_SIZE = 256
COPY_BYTES = {"cuda": 2**28, "cpu": 2**26}


def flops_per_second(torch: Any, device: str, name: str) -> float:
    """Floating point operations per second of a square matrix product in the named type ("bf16").

    Draws from a generator of its own: a training that follows has the random numbers that its seed gives.
    """
    size = matrix_size(torch.device(device), name)
    kind, own = getattr(torch, TORCH_NAMES[name]), torch.Generator(device)
    left, right = (torch.randn(size, size, device=device, dtype=kind, generator=own) for _ in range(2))
    result = torch.empty_like(left)
    return float(2 * size**3 / median_seconds(torch, device, lambda: torch.mm(left, right, out=result)))


def matrix_size(device: Any, name: str) -> int:
    if is_slow(device, name):
        return SLOW_MATRIX_SIZE
    return (FP32_MATRIX_SIZE if name == FP32 else MATRIX_SIZE)[device.type]


def bf16_flops_per_second(torch: Any, device: str) -> float:
    return flops_per_second(torch, device, BF16)


def bandwidth_bytes_per_second(torch: Any, device: str) -> float:
    """Bytes per second of a copy within the device's memory, counting both reads and writes."""
    count = COPY_BYTES[torch.device(device).type]
    source = torch.zeros(count, device=device, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return 2 * count / median_seconds(torch, device, lambda: target.copy_(source))


def median_seconds(torch: Any, device: str, action: Callable[[], object]) -> float:
    """The median duration of `action`, over as many repeats as fit into TIMED_SECONDS."""
    timed = cuda_seconds if device.startswith("cuda") else cpu_seconds
    # The first call creates handles and loads kernels.
    timed(torch, device, action, 1)
    once = timed(torch, device, action, 1)[0]
    return median(timed(torch, device, action, max(1, min(MOST_REPEATS, int(TIMED_SECONDS / once)))))


def cuda_seconds(torch: Any, device: str, action: Callable[[], object], repeats: int) -> list[float]:
    with torch.cuda.device(device):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            action()
            mark.record()
        marks[-1].synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def cpu_seconds(torch: Any, device: str, action: Callable[[], object], repeats: int) -> list[float]:
    durations = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        durations.append(time.perf_counter() - started)
    return durations
