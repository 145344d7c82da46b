"""The rest of the machine: CPU, memory, disk space and the Hugging Face Hub."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmft_cli.base.network import hub_is_reachable
from llmft_cli.gpu.background import run_in_background
from llmft_cli.gpu.problem import Problem
from llmft_cli.settings.compute_types import cpu_has_bf16
from llmft_cli.settings.quantities import format_size

Purpose = Literal["cache", "downloads", "runs"]
ELSEWHERE: dict[Purpose, str] = {
    "cache": "set LLMFT_CACHE to another folder",
    "downloads": "set HF_HOME to another folder",
    "runs": "keep runs elsewhere (--run)",
}
# Too little for the adapter and the checkpoints of a small model.
NEARLY_FULL_BELOW_BYTES = 2**30
# The request has a timeout of two seconds, but its DNS lookup may take far longer.
HUB_SECONDS = 3
# cgroup versions 2 and 1.
LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Cpu:
    """The CPU as torch uses it: the widest vector instructions ("AVX2"), whether it has bf16 instructions, threads."""

    instruction_set: str
    bf16: bool
    threads: int


@dataclass(frozen=True)
class Memory:
    """The machine's memory, or the part that the container may use."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Disk:
    """The file system of `path`, which need not exist yet.

    `cache` is for llmft's converted models, `downloads` for files from the Hub.
    """

    path: str
    purpose: Purpose
    free_bytes: int
    total_bytes: int
    writable: bool


@dataclass(frozen=True)
class Hub:
    """The Hugging Face Hub: whether a token is stored here (valid or not), and whether the Hub answers."""

    token: bool
    offline: bool
    reachable: bool


def describe_cpu(torch: Any) -> Cpu:
    return Cpu(torch.backends.cpu.get_cpu_capability(), cpu_has_bf16(), torch.get_num_threads())


def measure_memory() -> Memory:
    import psutil

    memory = psutil.virtual_memory()
    limit = container_limit()
    return Memory(int(min(memory.total, limit)), int(min(memory.available, limit)))


def container_limit() -> float:
    """The container's memory limit in bytes; infinity if there is none."""
    for file in LIMIT_FILES:
        with suppress(OSError):
            text = file.read_text().strip()
            return math.inf if text == "max" else int(text)
    return math.inf


def measure_disk(path: Path, purpose: Purpose) -> Disk:
    path = path.absolute()
    place = next(place for place in (path, *path.parents) if place.exists())
    usage = shutil.disk_usage(place)
    return Disk(str(path), purpose, usage.free, usage.total, os.access(place, os.W_OK))


def disk_problem(disk: Disk) -> Problem | None:
    folder = f"the folder for {'the cache' if disk.purpose == 'cache' else disk.purpose} ({disk.path})"
    if not disk.writable:
        return Problem(f"{folder} is not writable", f"fix its permissions, or {ELSEWHERE[disk.purpose]}")
    if disk.free_bytes < NEARLY_FULL_BELOW_BYTES:
        what = f"{folder} has only {format_size(disk.free_bytes)} of free space"
        return Problem(what, f"free some space, or {ELSEWHERE[disk.purpose]}")
    return None


def downloads_dir() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def check_hub() -> Hub:
    reaching = run_in_background(hub_is_reachable)
    from huggingface_hub import constants, get_token

    token = get_token() is not None
    try:
        reachable = reaching.result(HUB_SECONDS)
    except TimeoutError:
        reachable = False
    return Hub(token, constants.HF_HUB_OFFLINE, reachable)
