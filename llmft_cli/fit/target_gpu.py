"""The GPU that a training run must fit on: one of this machine, or one that is only described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmft_cli.base.reporter import Reporter
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from llmft_cli.gpu.gpus import Gpu
    from llmft_cli.gpu.probes import Probe
    from llmft_cli.settings.compute_types import Abilities
    from llmft_cli.training.planning.speed import Rates


@dataclass(frozen=True)
class TargetGpu:
    """The GPU that a training run must fit on: its free memory, and its measured rates; `device` is None if it is not here."""

    name: str
    available_bytes: int
    device: str | None
    rates: Rates | None


def freest_gpu(gpus: Sequence[Gpu], probes: Sequence[Probe], count: int) -> TargetGpu | None:
    """Of torch's GPUs, the one with the `count`-th most free memory: training on `count` GPUs must fit it. None if too few."""
    from llmft_cli.training.planning.speed import Rates

    usable = [gpu for gpu in gpus if gpu.device is not None and gpu.memory_free_bytes is not None]
    usable.sort(key=lambda gpu: -(gpu.memory_free_bytes or 0))
    if len(usable) < count:
        return None
    gpu = usable[count - 1]
    rates = None
    for probe in probes:
        if probe.device == gpu.device and probe.flops_per_second and probe.bandwidth_bytes_per_second:
            rates = Rates(probe.flops_per_second, probe.bandwidth_bytes_per_second)
    return TargetGpu(f"GPU {gpu.index}: {gpu.name}", gpu.memory_free_bytes or 0, gpu.device, rates)


def for_gpu(config: Config, gpu: TargetGpu | None, reporter: Reporter) -> tuple[Config, Abilities | None]:
    """The settings with `compute_dtype` resolved, and the GPU's abilities; bf16 and None if the GPU is not here."""
    import torch

    from llmft_cli.training.fast.kernels.select import abilities_of

    if gpu is not None and gpu.device is not None:
        device = torch.device(gpu.device)
        return compute_types.settled(config, device, reporter), abilities_of(device)
    is_auto = config.compute_dtype == compute_types.AUTO
    return replace(config, compute_dtype=compute_types.BF16) if is_auto else config, None


def limit(gpu: TargetGpu | None, max_vram: int | None) -> int | None:
    """GPU memory in bytes that the training may use; None without a limit."""
    if gpu is None:
        return max_vram
    return gpu.available_bytes if max_vram is None else min(gpu.available_bytes, max_vram)
