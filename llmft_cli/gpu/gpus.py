"""The GPUs of this machine: GPUtil's list, completed by nvidia-smi and later by torch."""

from __future__ import annotations

import math
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from llmft_cli.gpu.background import beside
from llmft_cli.gpu.nvidia_smi import BYTES_PER_MIB, TIME_LIMIT_SECONDS, GpuProcess, NoAnswer, Survey, survey
from llmft_cli.gpu.problem import Problem
from llmft_cli.settings.quantities import format_size

DRIVER_MEND = "see what `nvidia-smi` says; a driver that was updated or crashed needs a reboot"
MEMORY_MEND = "free memory on the GPU: `nvidia-smi` shows which processes hold it"
# CUDA would hang as well.
HANGS = Problem(
    f"nvidia-smi did not answer within {TIME_LIMIT_SECONDS} s: the driver hangs",
    "end what uses the GPUs; where that does not help, reboot the machine",
)
# CUDA's context alone takes half a GiB: with less than this free, no training begins.
FULL_BELOW_BYTES = 2**30
# A card with less than this free is not opened: CUDA's context takes 0.5 to 0.9 GiB, so that opening the card fails or
# takes the last memory of the job that holds it. It may hang, too: on an H100 with nothing left a test had not ended
# after 140 s, for a reason that was not found.
OPENED_FROM_BYTES = 6 * 2**30 // 10
PROCESSES_NAMED = 3


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where the card does not tell, or where its source (nvidia-smi, torch) does not see it.

    `load` is a share of 1. `device` is torch's name ("cuda:0"): torch numbers only the cards in
    CUDA_VISIBLE_DEVICES, and the fastest first. `mig` and `ecc` are "enabled" or "disabled". `lacks` names the
    features that the GPU is too old for, `architecture` is NVIDIA's name for its generation.
    """

    index: int
    name: str
    uuid: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    load: float | None
    temperature_celsius: float | None
    driver: str | None
    device: str | None = None
    compute_capability: str | None = None
    bf16: bool | None = None
    mig: str | None = None
    ecc: str | None = None
    processes: list[GpuProcess] = field(default_factory=list)
    lacks: list[str] | None = None
    architecture: str | None = None


@dataclass(frozen=True)
class Listing:
    """What nvidia-smi shows; `absence` is why it shows no GPU, with an empty mend where there is nothing to mend."""

    gpus: list[Gpu]
    absence: Problem | None = None
    newest_cuda: str | None = None


def list_gpus() -> Listing:
    """The GPUs as nvidia-smi shows them, asked twice: for what GPUtil has no field for, and through GPUtil."""
    try:
        # First, because it ends a program that hangs; GPUtil's would hold our own output open.
        surveyed = survey()
    except NoAnswer:
        return Listing([], HANGS)
    gpus, absence = gputil_gpus()
    return Listing([completed(gpu, surveyed) for gpu in gpus], absence, surveyed.newest_cuda)


def completed(gpu: Gpu, surveyed: Survey) -> Gpu:
    more = surveyed.cards.get(gpu.uuid)
    if not more:
        return gpu
    return replace(gpu, mig=more.mig, ecc=more.ecc, processes=more.processes, architecture=more.architecture)


def import_gputil() -> None:
    """Import GPUtil, if it is there. It imports setuptools; in a thread, while torch is imported, that crashed Python 3.12."""
    with suppress(ImportError):
        import GPUtil  # noqa: F401


def gputil_gpus() -> tuple[list[Gpu], Problem | None]:
    """The GPUs that GPUtil finds, or why there are none; a plain absence has an empty mend."""
    if shutil.which("nvidia-smi") is None:
        return [], Problem("nvidia-smi was not found on the PATH", "")
    try:
        import GPUtil
    except ImportError as error:
        # GPUtil 1.4.0 imports distutils, which Python 3.12 dropped and setuptools brings back.
        package = "setuptools" if (error.name or "").startswith("distutils") else "GPUtil"
        what = f"GPUtil cannot list the GPUs on Python {platform.python_version()}: {error}"
        return [], Problem(what, f"pip install {package}")
    try:
        # Beside: GPUtil waits without end for a driver that hangs, and swallows Ctrl-C meanwhile.
        gpus = [gpu_of(entry) for entry in beside(GPUtil.getGPUs).result(TIME_LIMIT_SECONDS)]
    except TimeoutError:
        return [], HANGS
    except (ValueError, IndexError, ArithmeticError) as error:
        # GPUtil parses whatever nvidia-smi prints: its message stands where the index was expected.
        said = str(error).partition("base 10: ")[2].strip("'\"") or str(error)
        return [], Problem(f"nvidia-smi: {said}", "" if said == "No devices were found" else DRIVER_MEND)
    return gpus, None if gpus else Problem("nvidia-smi lists no GPU", "")


def gpu_of(entry: Any) -> Gpu:
    """A `GPUtil.GPU`, whose memory is in MiB and whose unsupported figures are NaN."""
    total, free = (finite(mebibytes) for mebibytes in (entry.memoryTotal, entry.memoryFree))
    total_bytes, free_bytes = (None if size is None else int(size * BYTES_PER_MIB) for size in (total, free))
    load, temperature = finite(entry.load), finite(entry.temperature)
    return Gpu(entry.id, entry.name, entry.uuid, total_bytes, free_bytes, load, temperature, entry.driver)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def is_full(gpu: Gpu) -> bool:
    return gpu.memory_free_bytes is not None and gpu.memory_free_bytes < FULL_BELOW_BYTES


def can_be_opened(gpu: Gpu) -> bool:
    """Whether CUDA's context may find room there; so it may on a card that does not tell."""
    return gpu.memory_free_bytes is None or gpu.memory_free_bytes >= OPENED_FROM_BYTES


def fullness(gpu: Gpu) -> Problem:
    """Who holds a full GPU's memory, the largest first."""
    mend = "wait until they end, or choose another GPU with CUDA_VISIBLE_DEVICES"
    if not gpu.processes:
        free, total = (format_size(size or 0) for size in (gpu.memory_free_bytes, gpu.memory_total_bytes))
        return Problem(f"GPU {gpu.index} has {free} of {total} free, and shows no process that holds the rest", mend)
    largest = sorted(gpu.processes, key=lambda process: process.memory_bytes or 0, reverse=True)
    named = ", ".join(map(described, largest[:PROCESSES_NAMED]))
    others = len(largest) - PROCESSES_NAMED
    return Problem(f"GPU {gpu.index} is fully used by: {named}{f' and {others} more' if others > 0 else ''}", mend)


def described(process: GpuProcess) -> str:
    """python (pid 4711, 79 GiB)"""
    memory = "" if process.memory_bytes is None else f", {format_size(process.memory_bytes)}"
    return f"{process.name or 'a process'} (pid {process.pid}{memory})"
