"""Wait until GPUs are free, for job scripts.

"Free" is a snapshot of what nvidia-smi shows. Nothing is reserved: two jobs that wait for the same
GPU can both get it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmft_cli.base.errors import MachineError, OutOfMemory
from llmft_cli.base.reporter import Reporter
from llmft_cli.gpu.eligible import list_candidates
from llmft_cli.gpu.gpus import Gpu
from llmft_cli.gpu.nvidia_smi import BYTES_PER_MIB
from llmft_cli.settings.quantities import (
    format_duration,
    format_size,
    parse_count,
    parse_duration,
    parse_flag,
    parse_fraction,
    parse_size,
)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0
SECONDS_BETWEEN_LINES = 60.0
FAILURES_TOLERATED = 5
# Default if no size is requested: a GPU still counts as free with what a desktop or an idle driver uses.
HIGHEST_SHARE_USED = 0.1
HIGHEST_LOAD = 0.1


@dataclass(frozen=True)
class Wanted:
    """What to wait for.

    Attributes:
        count: number of GPUs, each as follows.
        min_free_bytes: minimum free memory; None for 90% of the GPU's total.
        max_load: maximum utilisation, a fraction; a GPU whose load is unknown passes.
        timeout_seconds: how long to wait; 0 checks once.
    """

    count: int = 1
    min_free_bytes: int | None = None
    max_load: float = HIGHEST_LOAD
    timeout_seconds: float = 0.0

    def __str__(self) -> str:
        memory = f"{1 - HIGHEST_SHARE_USED:.0%} of its memory"
        if self.min_free_bytes is not None:
            memory = format_size(self.min_free_bytes, round_up=True)
        gpus = "1 GPU with" if self.count == 1 else f"{self.count} GPUs, each with"
        load = f" and a load of at most {self.max_load * 100:g}%" if self.max_load < 1 else ""
        return f"{gpus} {memory} free{load}"


@dataclass(frozen=True)
class Ready:
    """The GPUs that are free; indices are nvidia-smi's."""

    gpu_indices: list[int]
    gpu_uuids: list[str]
    waited_seconds: float


def read_wanted(wait: str | None, min_free: str | None, max_load: str | None, gpus: str | None) -> Wanted:
    """Parse the flags of these names; None if a flag was not given.

    Raises:
        ConfigError: a flag is malformed.
    """
    return Wanted(
        count=parse_flag(parse_count, gpus, "--gpus", "2") if gpus is not None else 1,
        min_free_bytes=parse_flag(parse_size, min_free, "--min-free", "20GiB") if min_free is not None else None,
        max_load=parse_flag(parse_fraction, max_load, "--max-load", "0.1") if max_load is not None else HIGHEST_LOAD,
        timeout_seconds=parse_flag(parse_duration, wait, "--wait", "2h") if wait is not None else 0.0,
    )


def wait_for_gpus(wanted: Wanted, reporter: Reporter) -> Ready:
    """Poll nvidia-smi until enough GPUs are free; of these, take those with the most free memory.

    Raises:
        MachineError: no driver or too few GPUs, at the start or several times in a row.
        OutOfMemory: too few GPUs became free in time, or their total memory is too small.
    """
    started = time.monotonic()
    deadline = started + wanted.timeout_seconds
    messages = WaitMessages(wanted, reporter)
    # A failure of the first poll is reported immediately; later, a few failures in a row are tolerated.
    tolerated = 0
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            gpus = list_candidates(wanted.count)
        except MachineError as error:
            if tolerated == 0 or time.monotonic() >= deadline:
                raise
            tolerated -= 1
            reporter.note(f"{error.message}; retrying")
        else:
            tolerated = FAILURES_TOLERATED
            check_sizes(gpus, wanted)
            free = free_gpus(gpus, wanted)
            if len(free) >= wanted.count:
                waited = time.monotonic() - started
                chosen = sorted(free[: wanted.count], key=lambda gpu: gpu.index)
                return Ready([gpu.index for gpu in chosen], [gpu.uuid for gpu in chosen], round(waited, 3))
            if time.monotonic() >= deadline:
                raise not_free(gpus, wanted)
            messages.update(gpus)
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def check_sizes(gpus: Sequence[Gpu], wanted: Wanted) -> None:
    """Check that enough GPUs have the wanted memory in total, free or not.

    Raises:
        OutOfMemory: they do not, so waiting is useless.
    """
    sizes = [gpu.memory_total_bytes or math.inf for gpu in gpus]
    fitting = sum(size >= (wanted.min_free_bytes or 0) for size in sizes)
    if fitting >= wanted.count:
        return
    if fitting == 0:
        fact = f"the largest GPU has {format_size(int(max(sizes)))} in total"
    else:
        fact = f"only {fitting} of {len(gpus)} GPUs {'has' if fitting == 1 else 'have'} that much in total"
    raise OutOfMemory(
        f"cannot wait for {wanted}: {fact}", "request less memory with --min-free, or use a machine with larger GPUs"
    )


def free_gpus(gpus: Sequence[Gpu], wanted: Wanted) -> list[Gpu]:
    """The GPUs that meet the request now, most free memory first."""
    import GPUtil

    any_size = wanted.min_free_bytes is None
    flags = GPUtil.getAvailability(
        [gputil_entry(gpu) for gpu in gpus],
        # GPUtil's limit is exclusive, ours is inclusive.
        maxLoad=math.nextafter(wanted.max_load, math.inf),
        maxMemory=HIGHEST_SHARE_USED if any_size else math.inf,
        memoryFree=(wanted.min_free_bytes or 0) / BYTES_PER_MIB,
        includeNan=True,
    )
    free = [gpu for gpu, flag in zip(gpus, flags, strict=True) if flag]
    return sorted(free, key=lambda gpu: (-(gpu.memory_free_bytes or 0), gpu.index))


def gputil_entry(gpu: Gpu) -> object:
    """The `GPUtil.GPU` of a GPU: memory in MiB, NaN for unknown values."""
    import GPUtil

    total, free = (
        math.nan if size is None else size / BYTES_PER_MIB for size in (gpu.memory_total_bytes, gpu.memory_free_bytes)
    )
    load = math.nan if gpu.load is None else gpu.load
    return GPUtil.GPU(gpu.index, gpu.uuid, load, total, total - free, free, gpu.driver, gpu.name, "", "", "", math.nan)


def format_gpu_states(gpus: Sequence[Gpu]) -> str:
    """`GPU 0 has 3.1 GiB free, load 97%; GPU 1 has ...`"""
    return "; ".join(
        f"GPU {gpu.index} has {format_size(gpu.memory_free_bytes or 0)} free, "
        f"load {'unknown' if gpu.load is None else f'{gpu.load:.0%}'}"
        for gpu in gpus
    )


def not_free(gpus: Sequence[Gpu], wanted: Wanted) -> OutOfMemory:
    if wanted.timeout_seconds == 0:
        return OutOfMemory(f"not free now: {wanted}: {format_gpu_states(gpus)}", "to wait for it: --wait 2h")
    waited = format_duration(wanted.timeout_seconds)
    holders = "`nvidia-smi` shows which processes use the memory"
    mend = f"{holders}; wait longer (--wait) or request less (--min-free, --max-load)"
    return OutOfMemory(f"not free within {waited}: {wanted}: {format_gpu_states(gpus)}", mend)


class WaitMessages:
    """Notes what is waited for: at first, whenever a GPU starts or stops meeting the request, and every minute."""

    def __init__(self, wanted: Wanted, reporter: Reporter) -> None:
        self._wanted = wanted
        self._reporter = reporter
        self._shown: object = None
        self._shown_at = -math.inf

    def update(self, gpus: Sequence[Gpu]) -> None:
        large_enough = free_gpus(gpus, replace(self._wanted, max_load=1.0))
        state = [{gpu.uuid for gpu in matching} for matching in (large_enough, free_gpus(gpus, self._wanted))]
        now = time.monotonic()
        if state != self._shown or now - self._shown_at >= SECONDS_BETWEEN_LINES:
            self._shown, self._shown_at = state, now
            self._reporter.note(f"waiting for {self._wanted}: {format_gpu_states(gpus)}")
