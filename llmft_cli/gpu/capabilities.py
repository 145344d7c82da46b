"""What a GPU of some compute capability can do for a training. Only this file says which feature needs which."""

from __future__ import annotations

from llmft_cli.settings.compute_types import FIRST_WITH_BF16, FIRST_WITH_FLASH_ATTENTION

Capability = tuple[int, int]

# Without it there is no training: NF4, int8 and the 8-bit optimizers are kernels of bitsandbytes.
FIRST_USABLE: Capability = (6, 0)
# The first compute capability with each.
#   NF4: bitsandbytes' installation guide (0.50). Its compiled libraries begin with sm_60 for CUDA 12.6, with sm_70 for
#     12.8 and with sm_75 for 13.0 (listed with cuobjdump), as torch's builds do or earlier.
#   int8: the same guide; on older GPUs cuBLASLt has no tensor cores for it.
#   bf16: units for it came with Ampere. What torch emulates on older GPUs is too slow to train with.
#   FlashAttention: torch's own kernels, hence `varlen_attn` and `scaled_dot_product_attention` on their fast paths.
# Triton is not among them. Its README asks for 8.0, since older GPUs get neither tensor cores for `tl.dot` nor loads
# ahead of a loop (triton 3.6.0, backends/nvidia/compiler.py). Our kernels use neither, and triton 3.6.0 compiles all
# nine for 6.0, 7.0, 7.5, 8.0 and 9.0, in fp16, bf16 and fp32.
FIRST_WITH: dict[str, Capability] = {
    "NF4": FIRST_USABLE,
    "int8": (7, 5),
    "bf16": FIRST_WITH_BF16,
    "FlashAttention": FIRST_WITH_FLASH_ATTENTION,
}
# The oldest GPUs of each architecture, as nvidia-smi names them (NVIDIA's list of compute capabilities).
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
    """The features that a GPU is too old for."""
    return [feature for feature, first in FIRST_WITH.items() if capability < first]


def written(capability: Capability) -> str:
    """7.5"""
    return ".".join(map(str, capability))


def read(text: str) -> Capability:
    """Of "7.5"; versions of CUDA are written likewise."""
    major, minor = text.split(".")
    return int(major), int(minor)
