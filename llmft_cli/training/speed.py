"""How long a step will take, from what it computes and moves and what the device was measured to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmft_cli.training.simulation import Step

# Fitted to 30 steps measured on an H100 (benchmarks/results/memory-h100.json): with these, 27 of them are
# predicted within 10%. FlashAttention-2 reaches 354 of 799 TFLOP/s; elementwise kernels 1.43 of 2.9 TB/s, since
# some of what is counted as moved stays in the cache and some is moved twice; launching takes 42 microseconds.
ATTENTION_SHARE = 0.44
BANDWIDTH_SHARE = 0.5
LAUNCH_SECONDS = 42e-6
# Fitted by least squares to 26 steps on an H100 that were replayed as CUDA graphs; of the 32 that were measured later
# (benchmarks/results/memory-fast-h100.json) 29 are predicted within 6%, the worst 16% too fast. cuDNN's attention takes
# the place of FlashAttention-2 where each sequence is one row. Kernels follow each other without the processor, 2.77
# microseconds apart.
RECORDED_PRODUCT_SHARE = 0.925
RECORDED_UNPACKED_ATTENTION_SHARE = 0.753
RECORDED_BANDWIDTH_SHARE = 0.742
RECORDED_KERNEL_SECONDS = 2.77e-6


@dataclass(frozen=True)
class Rates:
    """What a device does in a second: floating-point operations of bf16 products, and bytes moved in its memory."""

    bf16_flops_per_second: float
    bandwidth_bytes_per_second: float


# Of an H100 80GB, to rank plans where nothing was measured: what a card does faster another does faster too.
REFERENCE_RATES = Rates(790e12, 2.9e12)


def step_seconds(step: Step, rates: Rates) -> float:
    """Predicted time of one forward and backward pass; the processor launches kernels while the device computes."""
    computing = (
        step.product_flops / rates.bf16_flops_per_second
        + step.attention_flops / (ATTENTION_SHARE * rates.bf16_flops_per_second)
        + step.moved_bytes / (BANDWIDTH_SHARE * rates.bandwidth_bytes_per_second)
    )
    return max(computing, step.kernels * LAUNCH_SECONDS)


def recorded_step_seconds(step: Step, rates: Rates, packed: bool) -> float:
    """Predicted time of one forward and backward pass that is replayed as a CUDA graph.

    Args:
        packed: whether a sequence has more than one row.
    """
    attention_share = ATTENTION_SHARE if packed else RECORDED_UNPACKED_ATTENTION_SHARE
    return (
        step.product_flops / (RECORDED_PRODUCT_SHARE * rates.bf16_flops_per_second)
        + step.attention_flops / (attention_share * rates.bf16_flops_per_second)
        + step.moved_bytes / (RECORDED_BANDWIDTH_SHARE * rates.bandwidth_bytes_per_second)
        + step.kernels * RECORDED_KERNEL_SECONDS
    )
