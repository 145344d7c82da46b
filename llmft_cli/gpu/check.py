"""What this machine offers a fine-tuning job: GPUs, library versions, a live NF4 probe, memory and disk.

A machine without a GPU, with a broken driver or without torch is a finding in the report, with
the line that mends it. Only `require_gpu` turns such a finding into an error.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from llmft_cli import __version__
from llmft_cli.errors import MachineError, first_line
from llmft_cli.gpu.findings import Problem
from llmft_cli.gpu.gpus import Gpu, list_gpus, view_through_torch
from llmft_cli.gpu.probes import Nf4Probe, probe_nf4
from llmft_cli.libraries import version_of
from llmft_cli.progress import Reporter

LIBRARIES = ("torch", "bitsandbytes", "transformers", "peft", "accelerate", "datasets", "GPUtil", "wandb", "triton")
NO_GPU_MEND = "use a machine with an NVIDIA GPU and its driver; start a container with its GPUs (docker run --gpus all)"


@dataclass(frozen=True)
class Memory:
    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Disk:
    """The file system that holds `path`, or will hold it once it is made."""

    path: str
    purpose: Literal["cache", "runs"]
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Report:
    """All findings; `bf16` tells whether torch's first GPU computes in bf16, None where torch sees none."""

    gpus: list[Gpu]
    gpu_problem: str | None
    nf4_probe: Nf4Probe
    versions: dict[str, str | None]
    bf16: bool | None
    memory: Memory
    disks: list[Disk]
    problems: list[Problem]


def check(reporter: Reporter, cache: Path, runs: Path) -> Report:
    """Look at the machine. Whatever is missing or broken is a finding of the report, never an error.

    Args:
        reporter: told of the steps that take time.
        cache: where downloaded models go; it need not exist.
        runs: where runs go; it need not exist.
    """
    import psutil

    # Listed before torch opens the card, whose context takes several hundred MiB of the free memory.
    gpus, absence = list_gpus()
    reporter.note("loading torch")
    torch = import_torch()
    bf16 = cuda = view_problem = None
    probe_problem: Problem | None
    if isinstance(torch, Problem):
        probe, probe_problem = Nf4Probe(False, None, None, None, torch.what), torch
    else:
        cuda = torch.version.cuda
        gpus, bf16, view_problem = view_through_torch(torch, gpus)
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        reporter.note(f"probing NF4 on {device}")
        probe, probe_problem = probe_nf4(torch, device)
    own = {"python": platform.python_version(), "llmft": __version__}
    memory = psutil.virtual_memory()
    return Report(
        gpus=gpus,
        gpu_problem=absence.what if absence else None,
        nf4_probe=probe,
        versions=own | {library: version_of(library) for library in LIBRARIES} | {"cuda": cuda},
        bf16=bf16,
        memory=Memory(memory.total, memory.available),
        disks=[measure_disk(cache, "cache"), measure_disk(runs, "runs")],
        problems=[problem for problem in (absence, view_problem, probe_problem) if problem and problem.mend],
    )


def require_gpu(report: Report) -> None:
    """Hold that torch sees a GPU and that 4-bit weights compute right on it.

    Raises:
        MachineError: they do not; it says why and what mends it.
    """
    probe = report.nf4_probe
    on_gpu = (probe.device or "").startswith("cuda")
    if on_gpu and probe.ok:
        return
    if on_gpu:
        what = probe.problem
    elif report.gpus:
        what = report.problems[0].what
    else:
        what = report.gpu_problem
    mends = (problem.mend for problem in report.problems if problem.what == what)
    raise MachineError(f"no usable GPU: {what}", next(mends, NO_GPU_MEND))


def import_torch() -> ModuleType | Problem:
    try:
        import torch
    except ModuleNotFoundError as error:
        return Problem(f"{error.name} is not installed", f"pip install {error.name}")
    except (ImportError, OSError) as error:
        return Problem(f"torch cannot be imported: {first_line(error)}", "pip install --force-reinstall torch")
    return torch


def measure_disk(path: Path, purpose: Literal["cache", "runs"]) -> Disk:
    path = path.absolute()
    usage = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists()))
    return Disk(str(path), purpose, usage.free, usage.total)
