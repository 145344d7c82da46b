"""The features that training uses, and the compute capability that each needs."""

from __future__ import annotations

from llmft_cli.settings.compute_types import FIRST_WITH_BF16, FIRST_WITH_FLASH_ATTENTION

Capability = tuple[int, int]

# Training needs bitsandbytes' kernels for NF4, int8 and the 8-bit optimizers.
FIRST_USABLE: Capability = (6, 0)
# The lowest compute capability with each feature.
#   NF4: bitsandbytes' installation guide (0.50). Its compiled libraries start at sm_60 for CUDA 12.6, sm_70 for 12.8
#     and sm_75 for 13.0 (listed with cuobjdump), as torch's builds do or earlier.
#   int8: the same guide; cuBLASLt has no int8 tensor cores to use on older GPUs.
#   bf16: hardware support came with Ampere. torch's emulation on older GPUs is too slow to train with.
#   FlashAttention: torch's own kernels, used by `varlen_attn` and by `scaled_dot_product_attention`'s fast path.
# Triton is not listed. Its README requires 8.0 because older GPUs get neither tensor cores for `tl.dot` nor prefetched
# loads in loops (triton 3.6.0, backends/nvidia/compiler.py). Our kernels use neither, and triton 3.6.0 compiles all
# nine for 6.0, 7.0, 7.5, 8.0 and 9.0, in fp16, bf16 and fp32.
FIRST_WITH: dict[str, Capability] = {
    "NF4": FIRST_USABLE,
    "int8": (7, 5),
    "bf16": FIRST_WITH_BF16,
    "FlashAttention": FIRST_WITH_FLASH_ATTENTION,
}
# The lowest compute capability of each architecture, by nvidia-smi's name (NVIDIA's list of compute capabilities).
FIRST_OF: dict[str, Capability] = {
    "Maxwell": (5, 0),
    "Pascal": (6, 0),
    "Volta": (7, 0),
    "Turing": (7, 5),
    "Ampere": (8, 0),
    "Ada Lovelace": (8, 9),
    "Hopper": (9, 0),
    "Blackwell": (10, 0),
}


def lacking(capability: Capability) -> list[str]:
    """The features that a GPU is too old to support."""
    return [feature for feature, first in FIRST_WITH.items() if capability < first]


def format_version(capability: Capability) -> str:
    """7.5"""
    return ".".join(map(str, capability))


def parse_version(text: str) -> Capability:
    """(7, 5) of "7.5"; CUDA versions have the same form."""
    major, minor = text.split(".")
    return int(major), int(minor)
