"""The GPUs that a job may wait for: those it may see, that are not split, and whose free memory is known."""

from __future__ import annotations

import os
from collections.abc import Sequence

from llmft_cli.base.errors import MachineError
from llmft_cli.gpu.gpus import Gpu, list_gpus

NO_GPU_MEND = "use a machine with an NVIDIA GPU and its driver; `llmft gpu-check` shows what this one has"


def list_candidates(count: int) -> list[Gpu]:
    """The cards that the job may have as a whole and whose free memory is known, `count` of them or more.

    Raises:
        MachineError: there are fewer.
    """
    listing = list_gpus()
    if listing.absence:
        raise MachineError(f"no GPU to wait for: {listing.absence.what}", listing.absence.mend or NO_GPU_MEND)
    gpus = listing.gpus
    asked = f"{count} GPU{'s' if count > 1 else ''} asked for"
    if len(gpus) < count:
        raise MachineError(f"{asked}, this machine has {len(gpus)}", f"ask for fewer: --gpus {len(gpus)}")
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = visible_gpus(gpus, allowed)
    if len(visible) < count and "MIG-" not in str(allowed):
        what = f"{asked}, CUDA_VISIBLE_DEVICES={allowed} leaves {len(visible)} of {len(gpus)}"
        raise MachineError(what, "ask the scheduler for more GPUs, or: unset CUDA_VISIBLE_DEVICES")
    whole = [gpu for gpu in visible if gpu.mig != "enabled"]
    if len(whole) < count:
        what = f"{asked}, {len(whole)} of {len(gpus)} are whole: the others are split into MIG slices, which cannot be watched"
        raise MachineError(what, "a slice is its job's alone: start the job without --wait, or undo: nvidia-smi -mig 0")
    telling = [gpu for gpu in whole if gpu.memory_free_bytes is not None]
    if len(telling) < count:
        mute = next(gpu for gpu in whole if gpu.memory_free_bytes is None)
        what = f"nvidia-smi does not tell the free memory of GPU {mute.index} ({mute.name})"
        raise MachineError(what, "look at it with: nvidia-smi; start the job without --wait")
    return telling


def visible_gpus(gpus: Sequence[Gpu], allowed: str | None) -> list[Gpu]:
    """The cards that CUDA_VISIBLE_DEVICES names by index or (the beginning of a) UUID; all where it is not set.

    As CUDA reads it, the list ends before the first entry that names no card.
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
