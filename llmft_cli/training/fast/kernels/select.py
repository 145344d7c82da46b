"""Selects the kernels for a device."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from llmft_cli.settings import compute_types
from llmft_cli.settings.compute_types import ALL_ABILITIES, Abilities
from llmft_cli.training.fast.kernels.interface import Kernels

if TYPE_CHECKING:
    import torch


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton kernels run on a GPU. Triton supports GPUs since Ampere; on older ones, a test decides."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    capability = compute_types.capability_of(device)
    if capability >= compute_types.FIRST_WITH_BF16:
        return True
    return compute_types.abilities(capability).triton and triton_kernels_work(device)


def triton_kernels_work(device: torch.device) -> bool:
    """Whether a Triton kernel with fp16 memory access, loops and reductions gives the same results as torch."""
    import torch

    from llmft_cli.training.fast.kernels import plain

    try:
        from llmft_cli.training.fast.kernels import triton

        logits = torch.randn(8, 9000, device=device).half()
        targets = torch.arange(8, device=device)
        found = []
        for kernels in (triton, plain):
            losses, gradients = torch.zeros(8, device=device), logits.clone()
            kernels.cross_entropy(gradients, targets, losses)
            found.append(torch.cat([losses, gradients.flatten().float()]))
        return torch.allclose(found[0], found[1], rtol=1e-2, atol=1e-3)
    except Exception:  # compiler, assembler and driver may raise anything for a GPU that they do not support
        return False


def abilities_of(device: torch.device) -> Abilities | None:
    """The abilities of a GPU; `meta` stands for a GPU with all of them. None for a CPU."""
    if device.type == "meta":
        return ALL_ABILITIES
    if device.type != "cuda":
        return None
    return replace(compute_types.abilities(compute_types.capability_of(device)), triton=has_triton(device))


def kernels_for(device: torch.device) -> Kernels:
    if has_triton(device):
        from llmft_cli.training.fast.kernels import triton

        return triton
    if device.type == "meta":
        from llmft_cli.training.fast.kernels import counted

        return counted
    from llmft_cli.training.fast.kernels import plain

    return plain
