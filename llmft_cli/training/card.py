"""The GPU that a training gets: how much of it is there to take, and keeping to that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmft_cli.gpu.gpus import list_gpus
from llmft_cli.training.plans import CONTEXT_BYTES

if TYPE_CHECKING:
    import torch


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
