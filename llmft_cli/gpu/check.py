"""What this machine offers a fine-tuning job: GPUs, library versions, live probes, memory, disk and accounts.

A machine without a GPU, with a broken driver or without torch is a finding in the report, with
the line that mends it. Only `require_gpu` turns such a finding into an error.
"""

from __future__ import annotations

import platform
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmft_cli import __version__
from llmft_cli.base import wandb_account
from llmft_cli.base.errors import MachineError
from llmft_cli.base.libraries import version_of
from llmft_cli.base.preconditions import missing_here
from llmft_cli.base.reporter import Reporter
from llmft_cli.gpu import torch_builds
from llmft_cli.gpu.background import beside
from llmft_cli.gpu.cuda_libraries import bitsandbytes_cuda
from llmft_cli.gpu.gpus import HANGS, Gpu, Listing, can_be_opened, fullness, import_gputil, is_full, list_gpus
from llmft_cli.gpu.machine import (
    Cpu,
    Disk,
    Hub,
    Memory,
    disk_problem,
    downloads_dir,
    look_at_cpu,
    look_at_hub,
    measure_disk,
    measure_memory,
)
from llmft_cli.gpu.probes import Probe, load_bitsandbytes, probe, untried
from llmft_cli.gpu.problem import Problem
from llmft_cli.gpu.torch_view import import_torch, view_through_torch, why_unusable

LIBRARIES = ("torch", "bitsandbytes", "transformers", "peft", "accelerate", "datasets", "GPUtil", "wandb", "triton")
NO_GPU_MEND = "use a machine with an NVIDIA GPU and its driver; start a container with its GPUs (docker run --gpus all)"


@dataclass(frozen=True)
class Nf4Probe:
    """Whether 4-bit weights compute what they should on torch's first device: ||result - fp32 result|| / ||fp32 result||.

    `max_relative_error` is that of the 4-bit matrix product, the largest over the trials.
    """

    ok: bool
    device: str | None
    max_relative_error: float | None
    round_trip_relative_error: float | None
    problem: str | None


@dataclass(frozen=True)
class Computing:
    """What the libraries make of the GPUs: `bf16` tells whether torch's first computes in it, None where it sees none.

    `probes` is empty where nothing could be tried, for the first of the problems.
    """

    gpus: list[Gpu]
    problems: list[Problem]
    probes: list[Probe] = field(default_factory=list)
    bf16: bool | None = None
    cuda: str | None = None
    bitsandbytes_cuda: str | None = None
    versions_match: bool | None = None
    cpu: Cpu | None = None
    notes: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """All findings; those of `problems` want to be mended, those of `notes` work but could be better.

    `cpu` is None without torch, which tells of it. `versions_match` tells whether driver, torch and bitsandbytes work
    together, None where torch sees no GPU.
    """

    gpus: list[Gpu]
    gpu_problem: str | None
    nf4_probe: Nf4Probe
    probes: list[Probe]
    versions: dict[str, str | None]
    versions_match: bool | None
    bf16: bool | None
    cpu: Cpu | None
    memory: Memory
    disks: list[Disk]
    hub: Hub
    wandb: wandb_account.Login
    problems: list[Problem]
    notes: list[Problem]


def check(reporter: Reporter, cache: Path, runs: Path) -> Report:
    """Look at the machine. Whatever is missing or broken is a finding of the report, never an error.

    Args:
        reporter: told of the steps that take time.
        cache: where converted models go; it need not exist.
        runs: where runs go; it need not exist.
    """
    # Importing torch takes seconds, in which nvidia-smi and the Hub can answer.
    import_gputil()
    looking, reaching = beside(list_gpus), beside(look_at_hub)
    computing, listing = compute(reporter, looking)
    disks = [measure_disk(cache, "cache"), measure_disk(downloads_dir(), "downloads"), measure_disk(runs, "runs")]
    found = [listing.absence, *computing.problems, *map(disk_problem, disks), platform_problem()]
    return Report(
        gpus=computing.gpus,
        gpu_problem=listing.absence.what if listing.absence else None,
        nf4_probe=first_nf4(computing),
        probes=computing.probes,
        versions=versions(listing, computing),
        versions_match=computing.versions_match,
        bf16=computing.bf16,
        cpu=computing.cpu,
        memory=measure_memory(),
        disks=disks,
        hub=reaching.result(),
        wandb=wandb_account.login(),
        # Once: that a GPU is full is also why its probe fails.
        problems=list(dict.fromkeys(problem for problem in found if problem and problem.mend)),
        notes=computing.notes,
    )


def compute(reporter: Reporter, looking: Future[Listing]) -> tuple[Computing, Listing]:
    """Import the libraries and try every device out that has room; also returns what was found by `looking` meanwhile."""
    reporter.note("loading torch")
    torch = import_torch()
    # Before torch opens a card, whose context takes several hundred MiB of the free memory.
    listing = looking.result()
    if isinstance(torch, Problem):
        return Computing(listing.gpus, [torch]), listing
    cuda = torch.version.cuda
    if listing.absence is HANGS:
        return Computing([], [HANGS], cuda=cuda, cpu=look_at_cpu(torch)), listing
    view = view_through_torch(torch, listing)
    problems = [fullness(gpu) for gpu in view.gpus if is_full(gpu) and (gpu.device or not view.devices)]
    if view.problem and not (problems and "out of memory" in view.problem.what):
        problems.insert(0, view.problem)
    bitsandbytes, unusable = load_bitsandbytes(torch, on_gpu=bool(view.devices))
    by_device = {gpu.device: gpu for gpu in view.gpus}
    probes = []
    for device in view.devices or ["cpu"]:
        gpu = by_device.get(device)
        if gpu and (reason := why_untried(torch, gpu, listing)):
            tried, found = untried(torch, device, reason, unusable)
        else:
            reporter.note(f"trying {device}")
            tried, found = probe(torch, device, bitsandbytes, unusable, gpu)
        probes.append(tried)
        problems += found
    found_out = Computing(
        gpus=view.gpus,
        problems=problems,
        probes=probes,
        bf16=view.bf16,
        cuda=cuda,
        bitsandbytes_cuda=bitsandbytes_cuda(bitsandbytes) if bitsandbytes else None,
        versions_match=unusable is None if view.devices else None,
        cpu=look_at_cpu(torch),
        notes=[] if view.gpus or (listing.absence and listing.absence.mend) else needless_cuda(torch),
    )
    return found_out, listing


def why_untried(torch: Any, gpu: Gpu, listing: Listing) -> Problem | None:
    """What keeps a device that torch sees from being tried out."""
    if not can_be_opened(gpu):
        return fullness(gpu)
    return why_unusable(torch, gpu, listing.newest_cuda)


def needless_cuda(torch: Any) -> list[Problem]:
    """Of a machine without a GPU: that its torch is a build for one, with CUDA's libraries."""
    if torch.version.cuda is None:
        return []
    what = f"torch {torch.__version__} brings gigabytes of CUDA's libraries, and there is no NVIDIA GPU here"
    # pip leaves the packages of a former build in place.
    return [Problem(what, f"smaller, in a new environment: {torch_builds.cpu_line(torch.__version__)}")]


def platform_problem() -> Problem | None:
    """What keeps trainings off this operating system."""
    missing = missing_here()
    return Problem(f"training needs Linux: {missing[0]}", missing[1]) if missing else None


def first_nf4(computing: Computing) -> Nf4Probe:
    if not computing.probes:
        return Nf4Probe(False, None, None, None, computing.problems[0].what)
    first = computing.probes[0]
    problem = None if first.nf4_ok else first.problem
    return Nf4Probe(first.nf4_ok, first.device, first.nf4_relative_error, first.nf4_round_trip_relative_error, problem)


def versions(listing: Listing, computing: Computing) -> dict[str, str | None]:
    """Versions of the libraries; `cuda` is torch's, `driver_cuda` the newest that the driver supports."""
    return {
        "python": platform.python_version(),
        "llmft": __version__,
        **{library: version_of(library) for library in LIBRARIES},
        "driver": listing.gpus[0].driver if listing.gpus else None,
        "driver_cuda": listing.newest_cuda,
        "cuda": computing.cuda,
        "bitsandbytes_cuda": computing.bitsandbytes_cuda,
    }


def require_gpu(report: Report) -> None:
    """Hold that torch sees a GPU which is not fully used, and that 4-bit weights compute right on it.

    Raises:
        MachineError: it is otherwise; it says why and what mends it.
    """
    probe = report.nf4_probe
    on_gpu = (probe.device or "").startswith("cuda")
    full = [fullness(gpu) for gpu in report.gpus if on_gpu and gpu.device == probe.device and is_full(gpu)]
    if on_gpu and probe.ok and not full:
        return
    if full:
        what: str | None = full[0].what
    elif on_gpu:
        what = probe.problem
    elif report.gpus:
        what = report.problems[0].what
    else:
        what = report.gpu_problem
    mends = (problem.mend for problem in report.problems if problem.what == what)
    raise MachineError(f"no usable GPU: {what}", next(mends, NO_GPU_MEND))
