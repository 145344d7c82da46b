"""The GPU that a training gets: how much of it is there to take, and keeping to that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmft_cli.gpu.gpus import list_gpus

if TYPE_CHECKING:
    import torch

# What CUDA, cuBLAS and bitsandbytes hold on an H100 beside torch's tensors: 0.74 to 0.88 GiB in 31 trainings
# (benchmarks/results/memory-h100.json). Not measured anew in each training: kernels and cuBLAS are loaded at
# their first use, so that all of it is there only after the first step, when the plan is long chosen.
CONTEXT_BYTES = int(0.9 * 2**30)


def available_bytes(device: torch.device, max_vram: int | None) -> int:
    """What this process may take of the card, its CUDA context included.

    To be asked before anything is on the card.
    """
    import torch

    # Listed first: torch's own answer comes with its context, which is not free any more then.
    listed = {gpu.uuid: gpu.memory_free_bytes for gpu in list_gpus().gpus}
    free = listed.get(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    if free is None:  # no nvidia-smi, or a slice of a card that it does not list
        free = torch.cuda.mem_get_info(device)[0]
    return free if max_vram is None else min(free, max_vram)


def hold_to(max_vram: int, device: torch.device) -> None:
    """Let torch's allocator take no more of the card than the budget leaves beside the CUDA context."""
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, max_vram - CONTEXT_BYTES) / total), device)
