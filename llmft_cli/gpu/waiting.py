"""Waiting until GPUs are free, for job scripts.

A card is free by its figures of one moment, as nvidia-smi shows them. Nothing is reserved: of two
jobs that wait for the same card, both can get it.
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
    checked,
    format_duration,
    format_size,
    parse_count,
    parse_duration,
    parse_fraction,
    parse_size,
)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0
SECONDS_BETWEEN_LINES = 60.0
FAILURES_TOLERATED = 5
# Where no size is asked for: what a desktop or an idle driver takes leaves a card free.
HIGHEST_SHARE_USED = 0.1
HIGHEST_LOAD = 0.1


@dataclass(frozen=True)
class Wanted:
    """What to wait for.

    Attributes:
        count: so many cards, each as follows.
        min_free_bytes: free memory; None for nine tenths of the card's own.
        max_load: highest share of the time that the card may compute; one that does not tell its load passes.
        timeout_seconds: how long to wait; 0 asks once.
    """

    count: int = 1
    min_free_bytes: int | None = None
    max_load: float = HIGHEST_LOAD
    timeout_seconds: float = 0.0

    def __str__(self) -> str:
        memory = f"{1 - HIGHEST_SHARE_USED:.0%} of its memory"
        if self.min_free_bytes is not None:
            memory = format_size(self.min_free_bytes, round_up=True)
        cards = "1 GPU with" if self.count == 1 else f"{self.count} GPUs, each with"
        load = f" and a load of at most {self.max_load * 100:g}%" if self.max_load < 1 else ""
        return f"{cards} {memory} free{load}"


@dataclass(frozen=True)
class Ready:
    """The cards that are free, by index as nvidia-smi counts."""

    gpu_indices: list[int]
    gpu_uuids: list[str]
    waited_seconds: float


def read_wanted(wait: str | None, min_free: str | None, max_load: str | None, gpus: str | None) -> Wanted:
    """What the flags of those names ask for; None for one that was not given.

    Raises:
        ConfigError: a flag is malformed.
    """
    return Wanted(
        count=checked(parse_count, gpus, "--gpus", "2") if gpus is not None else 1,
        min_free_bytes=checked(parse_size, min_free, "--min-free", "20GiB") if min_free is not None else None,
        max_load=checked(parse_fraction, max_load, "--max-load", "0.1") if max_load is not None else HIGHEST_LOAD,
        timeout_seconds=checked(parse_duration, wait, "--wait", "2h") if wait is not None else 0.0,
    )


def wait_for_gpus(wanted: Wanted, reporter: Reporter) -> Ready:
    """Ask nvidia-smi again and again until enough cards are free, those with the most free memory first.

    Raises:
        MachineError: there is no driver, or there are too few cards, at the start or several times in a row.
        OutOfMemory: they did not come free in time, or have too little memory in all.
    """
    started = time.monotonic()
    deadline = started + wanted.timeout_seconds
    narration = Narration(wanted, reporter)
    # A machine that cannot be waited on is told at once; later, a poll may fail and the wait goes on.
    tolerated = 0
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            gpus = list_candidates(wanted.count)
        except MachineError as error:
            if tolerated == 0 or time.monotonic() >= deadline:
                raise
            tolerated -= 1
            reporter.note(f"{error.message}; asking again")
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
            narration.tell(gpus)
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def check_sizes(gpus: Sequence[Gpu], wanted: Wanted) -> None:
    """Hold that enough cards have the memory at all, whoever uses it now.

    Raises:
        OutOfMemory: they have not, and waiting would be in vain.
    """
    sizes = [gpu.memory_total_bytes or math.inf for gpu in gpus]
    fitting = sum(size >= (wanted.min_free_bytes or 0) for size in sizes)
    if fitting >= wanted.count:
        return
    if fitting == 0:
        fact = f"the largest card has {format_size(int(max(sizes)))} in all"
    else:
        fact = f"only {fitting} of {len(gpus)} cards {'has' if fitting == 1 else 'have'} so much in all"
    raise OutOfMemory(f"no use waiting for {wanted}: {fact}", "ask for less: --min-free; or use a machine with larger cards")


def free_gpus(gpus: Sequence[Gpu], wanted: Wanted) -> list[Gpu]:
    """The cards that are as wanted now, those with the most free memory first."""
    import GPUtil

    any_size = wanted.min_free_bytes is None
    flags = GPUtil.getAvailability(
        [gputil_entry(gpu) for gpu in gpus],
        # GPUtil asks for less than this, where "at most" was promised.
        maxLoad=math.nextafter(wanted.max_load, math.inf),
        maxMemory=HIGHEST_SHARE_USED if any_size else math.inf,
        memoryFree=(wanted.min_free_bytes or 0) / BYTES_PER_MIB,
        includeNan=True,
    )
    free = [gpu for gpu, flag in zip(gpus, flags, strict=True) if flag]
    return sorted(free, key=lambda gpu: (-(gpu.memory_free_bytes or 0), gpu.index))


def gputil_entry(gpu: Gpu) -> object:
    """The `GPUtil.GPU` of a card, which counts in MiB and has NaN for what is not known."""
    import GPUtil

    total, free = (
        math.nan if size is None else size / BYTES_PER_MIB for size in (gpu.memory_total_bytes, gpu.memory_free_bytes)
    )
    load = math.nan if gpu.load is None else gpu.load
    return GPUtil.GPU(gpu.index, gpu.uuid, load, total, total - free, free, gpu.driver, gpu.name, "", "", "", math.nan)


def described(gpus: Sequence[Gpu]) -> str:
    """`GPU 0 has 3.1 GiB free, load 97%; GPU 1 has ...`"""
    return "; ".join(
        f"GPU {gpu.index} has {format_size(gpu.memory_free_bytes or 0)} free, "
        f"load {'unknown' if gpu.load is None else f'{gpu.load:.0%}'}"
        for gpu in gpus
    )


def not_free(gpus: Sequence[Gpu], wanted: Wanted) -> OutOfMemory:
    if wanted.timeout_seconds == 0:
        return OutOfMemory(f"not free now: {wanted}: {described(gpus)}", "wait for it: --wait 2h")
    waited = format_duration(wanted.timeout_seconds)
    holders = "`nvidia-smi` shows which processes hold the memory"
    mend = f"{holders}; wait longer (--wait) or ask for less (--min-free, --max-load)"
    return OutOfMemory(f"not free within {waited}: {wanted}: {described(gpus)}", mend)


class Narration:
    """What is waited for: said once, when a card becomes or ceases to be large or idle enough, and every minute."""

    def __init__(self, wanted: Wanted, reporter: Reporter) -> None:
        self._wanted = wanted
        self._reporter = reporter
        self._told: object = None
        self._told_at = -math.inf

    def tell(self, gpus: Sequence[Gpu]) -> None:
        large_enough = free_gpus(gpus, replace(self._wanted, max_load=1.0))
        state = [{gpu.uuid for gpu in cards} for cards in (large_enough, free_gpus(gpus, self._wanted))]
        now = time.monotonic()
        if state != self._told or now - self._told_at >= SECONDS_BETWEEN_LINES:
            self._told, self._told_at = state, now
            self._reporter.note(f"waiting for {self._wanted}: {described(gpus)}")
