"""The GPUs that a job can wait for: visible to it, not split by MIG, and with known free memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llmft_cli.base.errors import MachineError
from llmft_cli.gpu.gpus import Gpu, list_gpus
from llmft_cli.settings.quantities import format_count

NO_GPU_MEND = "use a machine with an NVIDIA GPU and its driver; `llmft gpu-check` shows what this one has"


def list_candidates(count: int) -> list[Gpu]:
    """The GPUs that a job can wait for, at least `count`.

    Raises:
        MachineError: there are fewer.
    """
    listing = list_gpus()
    if listing.absence:
        raise MachineError(f"no GPU to wait for: {listing.absence.what}", listing.absence.mend or NO_GPU_MEND)
    gpus = listing.gpus
    asked = f"{format_count(count, 'GPU')} requested"
    if len(gpus) < count:
        raise MachineError(f"{asked}, but this machine has {len(gpus)}", f"request fewer: --gpus {len(gpus)}")
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = visible_gpus(gpus, allowed)
    if len(visible) < count and "MIG-" not in str(allowed):
        what = f"{asked}, but CUDA_VISIBLE_DEVICES={allowed} makes only {len(visible)} of {len(gpus)} visible"
        raise MachineError(what, "ask the scheduler for more GPUs, or: unset CUDA_VISIBLE_DEVICES")
    whole = [gpu for gpu in visible if gpu.mig != "enabled"]
    if len(whole) < count:
        what = f"{asked}, but only {len(whole)} of {len(gpus)} are not split into MIG slices, which --wait does not support"
        raise MachineError(
            what, "start the job without --wait (no other job uses its slice), or disable MIG: nvidia-smi -mig 0"
        )
    known = [gpu for gpu in whole if gpu.memory_free_bytes is not None]
    if len(known) < count:
        unknown = next(gpu for gpu in whole if gpu.memory_free_bytes is None)
        what = f"nvidia-smi does not report the free memory of GPU {unknown.index} ({unknown.name})"
        raise MachineError(what, "check it with: nvidia-smi; start the job without --wait")
    return known


def visible_gpus(gpus: Sequence[Gpu], allowed: str | None) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by index or by (a prefix of) their UUID; all GPUs if it is not set.

    As in CUDA, the first entry that matches no GPU ends the list.
    """
    if allowed is None:
        return list(gpus)
    visible: list[Gpu] = []
    for entry in map(str.strip, allowed.split(",")):
        named = [gpu for gpu in gpus if entry == str(gpu.index) or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))]
        if not named:
            break
        visible += [gpu for gpu in named if gpu not in visible]
    return visible
