"""The GPUs of this machine: GPUtil's list, extended by nvidia-smi and later by torch."""

from __future__ import annotations

import math
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from llmft_cli.gpu.background import run_in_background
from llmft_cli.gpu.nvidia_smi import BYTES_PER_MIB, TIME_LIMIT_SECONDS, GpuProcess, NoAnswer, SmiReport, query_nvidia_smi
from llmft_cli.gpu.problem import Problem
from llmft_cli.settings.quantities import format_size

DRIVER_MEND = "run `nvidia-smi` for details; after a driver update or crash, reboot"
MEMORY_MEND = "free memory on the GPU: `nvidia-smi` shows which processes use it"
# CUDA would hang as well.
DRIVER_HANGS = Problem(
    f"nvidia-smi did not answer within {TIME_LIMIT_SECONDS} s (the driver is not responding)",
    "stop the processes that use the GPUs; if that does not help, reboot",
)
# The CUDA context alone takes half a GiB: with less than this free, no training can start.
FULL_BELOW_BYTES = 2**30
# A GPU with less free memory is not opened: the CUDA context takes 0.5 to 0.9 GiB, so opening the GPU would fail or take
# the last free memory from the job that runs there. It may also hang: on a full H100, a test still ran after 140 s
# (cause unknown).
OPENED_FROM_BYTES = 6 * 2**30 // 10
PROCESSES_NAMED = 3


@dataclass(frozen=True)
class Gpu:
    """One GPU; None for what it does not report, or if the source (nvidia-smi, torch) does not see it.

    `load` is a fraction. `device` is torch's name ("cuda:0"): torch numbers only the GPUs in CUDA_VISIBLE_DEVICES,
    fastest first. `mig` and `ecc` are "enabled" or "disabled". `lacks` names the features that the GPU is too old for,
    `architecture` is NVIDIA's name for its generation.
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
    """What nvidia-smi shows; `absence` is why it shows no GPU, with an empty `mend` if there is nothing to fix."""

    gpus: list[Gpu]
    absence: Problem | None = None
    newest_cuda: str | None = None


def list_gpus() -> Listing:
    """The GPUs as nvidia-smi shows them, from GPUtil and, for what it lacks, from nvidia-smi's XML."""
    try:
        # First, because this query kills an nvidia-smi that hangs; GPUtil's would keep our output open.
        smi = query_nvidia_smi()
    except NoAnswer:
        return Listing([], DRIVER_HANGS)
    gpus, absence = gputil_gpus()
    return Listing([with_details(gpu, smi) for gpu in gpus], absence, smi.newest_cuda)


def with_details(gpu: Gpu, smi: SmiReport) -> Gpu:
    details = smi.details.get(gpu.uuid)
    if not details:
        return gpu
    return replace(gpu, mig=details.mig, ecc=details.ecc, processes=details.processes, architecture=details.architecture)


def import_gputil() -> None:
    """Import GPUtil if it is installed, in the main thread.

    It imports setuptools, which crashed Python 3.12 when done in a thread while torch was imported.
    """
    with suppress(ImportError):
        import GPUtil  # noqa: F401


def gputil_gpus() -> tuple[list[Gpu], Problem | None]:
    """The GPUs that GPUtil finds, or why there are none; `mend` is empty if nothing is broken."""
    if shutil.which("nvidia-smi") is None:
        return [], Problem("nvidia-smi was not found on the PATH", "")
    try:
        import GPUtil
    except ImportError as error:
        # GPUtil 1.4.0 imports distutils, which Python 3.12 removed and setuptools provides.
        package = "setuptools" if (error.name or "").startswith("distutils") else "GPUtil"
        what = f"GPUtil cannot list the GPUs on Python {platform.python_version()}: {error}"
        return [], Problem(what, f"pip install {package}")
    try:
        # In the background: GPUtil waits forever for a driver that hangs, and swallows Ctrl-C meanwhile.
        gpus = [from_gputil(entry) for entry in run_in_background(GPUtil.getGPUs).result(TIME_LIMIT_SECONDS)]
    except TimeoutError:
        return [], DRIVER_HANGS
    except (ValueError, IndexError, ArithmeticError) as error:
        # GPUtil parses whatever nvidia-smi prints: an error message then stands in place of the GPU's index.
        said = str(error).partition("base 10: ")[2].strip("'\"") or str(error)
        return [], Problem(f"nvidia-smi: {said}", "" if said == "No devices were found" else DRIVER_MEND)
    return gpus, None if gpus else Problem("nvidia-smi lists no GPU", "")


def from_gputil(entry: Any) -> Gpu:
    """Convert a `GPUtil.GPU`, whose memory is in MiB and whose unknown values are NaN."""
    total, free = (finite(mebibytes) for mebibytes in (entry.memoryTotal, entry.memoryFree))
    total_bytes, free_bytes = (None if size is None else int(size * BYTES_PER_MIB) for size in (total, free))
    load, temperature = finite(entry.load), finite(entry.temperature)
    return Gpu(entry.id, entry.name, entry.uuid, total_bytes, free_bytes, load, temperature, entry.driver)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def is_full(gpu: Gpu) -> bool:
    return gpu.memory_free_bytes is not None and gpu.memory_free_bytes < FULL_BELOW_BYTES


def can_be_opened(gpu: Gpu) -> bool:
    """Whether there is room for a CUDA context; assumed if the free memory is unknown."""
    return gpu.memory_free_bytes is None or gpu.memory_free_bytes >= OPENED_FROM_BYTES


def full_gpu_problem(gpu: Gpu) -> Problem:
    """Which processes use a full GPU's memory, largest first."""
    select = "or select another GPU with CUDA_VISIBLE_DEVICES"
    if not gpu.processes:
        free, total = (format_size(size or 0) for size in (gpu.memory_free_bytes, gpu.memory_total_bytes))
        what = f"GPU {gpu.index} has only {free} of {total} free, and shows no processes that use the rest"
        return Problem(what, f"wait until its memory is free, {select}")
    largest = sorted(gpu.processes, key=lambda process: process.memory_bytes or 0, reverse=True)
    named = ", ".join(map(format_process, largest[:PROCESSES_NAMED]))
    others = len(largest) - PROCESSES_NAMED
    what = f"GPU {gpu.index} is fully used by: {named}{f' and {others} more' if others > 0 else ''}"
    return Problem(what, f"wait until they exit, {select}")


def format_process(process: GpuProcess) -> str:
    """python (pid 4711, 79 GiB)"""
    memory = "" if process.memory_bytes is None else f", {format_size(process.memory_bytes)}"
    return f"{process.name or 'a process'} (pid {process.pid}{memory})"
