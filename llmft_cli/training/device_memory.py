"""GPU memory of a training run: how much is available, and the limit that torch keeps to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmft_cli.gpu.gpus import list_gpus

if TYPE_CHECKING:
    import torch

# CUDA, cuBLAS and bitsandbytes held 0.74 to 0.88 GiB besides torch's tensors in 31 training runs on an H100
# (benchmarks/results/memory-h100.json). It cannot be measured when the plan is chosen: kernels and cuBLAS are loaded
# at their first use, so all of it is there only after the first step.
CONTEXT_BYTES = int(0.9 * 2**30)


def available_bytes(device: torch.device, max_vram: int | None) -> int:
    """GPU memory in bytes that this process may use, its CUDA context included; call it before anything is on the GPU."""
    import torch

    # Listed first: asking torch creates its context, and that memory is no longer free.
    listed = {gpu.uuid: gpu.memory_free_bytes for gpu in list_gpus().gpus}
    free = listed.get(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    if free is None:  # no nvidia-smi, or a slice of a GPU that it does not list
        free = torch.cuda.mem_get_info(device)[0]
    return free if max_vram is None else min(free, max_vram)


def hold_to(max_vram: int, device: torch.device) -> None:
    """Limit torch's allocator to what `max_vram` bytes leave besides the CUDA context."""
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, max_vram - CONTEXT_BYTES) / total), device)
