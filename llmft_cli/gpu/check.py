"""What this machine provides for fine-tuning: GPUs, library versions, live probes, memory, disk and accounts.

A missing GPU, a broken driver or a missing torch is a finding in the report, with the command that
fixes it. Only `require_gpu` turns such a finding into an error.
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
from llmft_cli.gpu.background import run_in_background
from llmft_cli.gpu.cuda_libraries import bitsandbytes_cuda
from llmft_cli.gpu.gpus import DRIVER_HANGS, Gpu, Listing, can_be_opened, full_gpu_problem, import_gputil, is_full, list_gpus
from llmft_cli.gpu.machine import (
    Cpu,
    Disk,
    Hub,
    Memory,
    check_hub,
    describe_cpu,
    disk_problem,
    downloads_dir,
    measure_disk,
    measure_memory,
)
from llmft_cli.gpu.probes import Probe, load_bitsandbytes, probe, skipped_probe
from llmft_cli.gpu.problem import Problem
from llmft_cli.gpu.torch_view import import_torch, view_from_torch, why_unusable

LIBRARIES = ("torch", "bitsandbytes", "transformers", "peft", "accelerate", "datasets", "GPUtil", "wandb", "triton")
NO_GPU_MEND = "use a machine with an NVIDIA GPU and its driver; start a container with its GPUs (docker run --gpus all)"


@dataclass(frozen=True)
class Nf4Probe:
    """Whether 4-bit weights give correct results on torch's first device.

    An error is ||result - fp32 result|| / ||fp32 result||; `max_relative_error` is the largest over the matrix products.
    """

    ok: bool
    device: str | None
    max_relative_error: float | None
    round_trip_relative_error: float | None
    problem: str | None


@dataclass(frozen=True)
class ComputeFindings:
    """What torch and bitsandbytes can do with the GPUs.

    `bf16` says whether torch's first GPU supports it, None if torch sees none. `probes` is empty if the first of the
    problems prevented all of them.
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
    """All findings; `problems` need fixing, `notes` are optional improvements.

    `cpu` is None without torch, which reports it. `versions_match` says whether driver, torch and bitsandbytes work
    together, None if torch sees no GPU.
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
    """Inspect the machine. Whatever is missing or broken is a finding in the report, never an error.

    Args:
        cache: where converted models go; it need not exist.
        runs: where runs go; it need not exist.
    """
    # nvidia-smi and the Hub can answer during the seconds that importing torch takes.
    import_gputil()
    pending_listing, pending_hub = run_in_background(list_gpus), run_in_background(check_hub)
    computed, listing = probe_devices(reporter, pending_listing)
    disks = [measure_disk(cache, "cache"), measure_disk(downloads_dir(), "downloads"), measure_disk(runs, "runs")]
    found = [listing.absence, *computed.problems, *map(disk_problem, disks), platform_problem()]
    return Report(
        gpus=computed.gpus,
        gpu_problem=listing.absence.what if listing.absence else None,
        nf4_probe=first_nf4(computed),
        probes=computed.probes,
        versions=versions(listing, computed),
        versions_match=computed.versions_match,
        bf16=computed.bf16,
        cpu=computed.cpu,
        memory=measure_memory(),
        disks=disks,
        hub=pending_hub.result(),
        wandb=wandb_account.login(),
        # Without duplicates: a full GPU is also the reason why its probe fails.
        problems=list(dict.fromkeys(problem for problem in found if problem and problem.mend)),
        notes=computed.notes,
    )


def probe_devices(reporter: Reporter, pending_listing: Future[Listing]) -> tuple[ComputeFindings, Listing]:
    """Import the libraries and probe every device with enough free memory; also returns the finished listing."""
    reporter.note("loading torch")
    torch = import_torch()
    # Before torch opens a GPU: its context takes several hundred MiB of the free memory.
    listing = pending_listing.result()
    if isinstance(torch, Problem):
        return ComputeFindings(listing.gpus, [torch]), listing
    cuda = torch.version.cuda
    if listing.absence is DRIVER_HANGS:
        return ComputeFindings([], [DRIVER_HANGS], cuda=cuda, cpu=describe_cpu(torch)), listing
    view = view_from_torch(torch, listing)
    problems = [full_gpu_problem(gpu) for gpu in view.gpus if is_full(gpu) and (gpu.device or not view.devices)]
    if view.problem and not (problems and "out of memory" in view.problem.what):
        problems.insert(0, view.problem)
    bitsandbytes, unusable = load_bitsandbytes(torch, on_gpu=bool(view.devices))
    by_device = {gpu.device: gpu for gpu in view.gpus}
    probes = []
    for device in view.devices or ["cpu"]:
        gpu = by_device.get(device)
        if gpu and (reason := why_skipped(torch, gpu, listing)):
            result, found = skipped_probe(torch, device, reason, unusable)
        else:
            reporter.note(f"testing {device}")
            result, found = probe(torch, device, bitsandbytes, unusable, gpu)
        probes.append(result)
        problems += found
    findings = ComputeFindings(
        gpus=view.gpus,
        problems=problems,
        probes=probes,
        bf16=view.bf16,
        cuda=cuda,
        bitsandbytes_cuda=bitsandbytes_cuda(bitsandbytes) if bitsandbytes else None,
        versions_match=unusable is None if view.devices else None,
        cpu=describe_cpu(torch),
        notes=[] if view.gpus or (listing.absence and listing.absence.mend) else unneeded_cuda_build(torch),
    )
    return findings, listing


def why_skipped(torch: Any, gpu: Gpu, listing: Listing) -> Problem | None:
    """Why a device that torch sees must not be probed, or None."""
    if not can_be_opened(gpu):
        return full_gpu_problem(gpu)
    return why_unusable(torch, gpu, listing.newest_cuda)


def unneeded_cuda_build(torch: Any) -> list[Problem]:
    """A note for machines without a GPU whose torch is a CUDA build."""
    if torch.version.cuda is None:
        return []
    what = f"torch {torch.__version__} includes gigabytes of CUDA libraries, but this machine has no NVIDIA GPU"
    # A new environment: pip would not remove the CUDA packages of the old build.
    return [Problem(what, f"for a smaller install, in a new environment: {torch_builds.cpu_line(torch.__version__)}")]


def platform_problem() -> Problem | None:
    """Why this operating system cannot train, or None if it can."""
    missing = missing_here()
    return Problem(f"training needs Linux: {missing[0]}", missing[1]) if missing else None


def first_nf4(computed: ComputeFindings) -> Nf4Probe:
    if not computed.probes:
        return Nf4Probe(False, None, None, None, computed.problems[0].what)
    first = computed.probes[0]
    problem = None if first.nf4_ok else first.problem
    return Nf4Probe(first.nf4_ok, first.device, first.nf4_relative_error, first.nf4_round_trip_relative_error, problem)


def versions(listing: Listing, computed: ComputeFindings) -> dict[str, str | None]:
    """Library versions; `cuda` is torch's CUDA version, `driver_cuda` the newest that the driver supports."""
    return {
        "python": platform.python_version(),
        "llmft": __version__,
        **{library: version_of(library) for library in LIBRARIES},
        "driver": listing.gpus[0].driver if listing.gpus else None,
        "driver_cuda": listing.newest_cuda,
        "cuda": computed.cuda,
        "bitsandbytes_cuda": computed.bitsandbytes_cuda,
    }


def require_gpu(report: Report) -> None:
    """Check that torch's first device is a GPU with free memory on which 4-bit weights give correct results.

    Raises:
        MachineError: it is not; with the reason and the fix.
    """
    probe = report.nf4_probe
    on_gpu = (probe.device or "").startswith("cuda")
    full = [full_gpu_problem(gpu) for gpu in report.gpus if on_gpu and gpu.device == probe.device and is_full(gpu)]
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
