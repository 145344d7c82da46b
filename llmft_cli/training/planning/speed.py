"""Predicted time of a step, from its work and the device's measured rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmft_cli.training.planning.simulation import Step

# Fitted by least squares (of logarithms, with absolute instead of squared residuals for outliers) to 65 steps measured on
# an H100: 30 with plain layers (benchmarks/results/memory-h100.json) and 35 with fast layers, replayed as CUDA graphs
# (memory-fast-h100.json). With fast layers, 33 are predicted within 6% and all within 11%. With plain layers, 23 are
# within 10%; launch-bound passes are the worst, between 33% too fast and 26% too slow.
PRODUCT_SHARE = 0.911
BANDWIDTH_SHARE = 0.78
# FlashAttention-2 reaches 354 of 799 TFLOP/s there; cuDNN's attention is used if each sequence is one row.
PACKED_ATTENTION_SHARE = 0.44
UNPACKED_ATTENTION_SHARE = 0.724
# In a CUDA graph, kernels follow each other directly; otherwise Python launches them, which takes longer than most kernels.
RECORDED_KERNEL_SECONDS, LAUNCH_SECONDS = 2.92e-6, 81e-6


@dataclass(frozen=True)
class Rates:
    """A device's rates: matrix products in the compute type, and memory bandwidth."""

    bf16_flops_per_second: float
    bandwidth_bytes_per_second: float


# Of an H100 80GB; used to rank plans without a measurement, because the ranking hardly depends on the GPU.
REFERENCE_RATES = Rates(790e12, 2.9e12)


def step_seconds(step: Step, rates: Rates, *, packed: bool, recorded: bool) -> float:
    """Predicted time of one forward and backward pass.

    Args:
        packed: whether a sequence has more than one row.
        recorded: whether it is replayed as a CUDA graph. Otherwise the CPU launches kernels while the device computes,
            and the slower of the two decides.
    """
    attention_share = PACKED_ATTENTION_SHARE if packed else UNPACKED_ATTENTION_SHARE
    computing = (
        step.product_flops / (PRODUCT_SHARE * rates.bf16_flops_per_second)
        + step.attention_flops / (attention_share * rates.bf16_flops_per_second)
        + step.moved_bytes / (BANDWIDTH_SHARE * rates.bandwidth_bytes_per_second)
    )
    if recorded:
        return computing + step.kernels * RECORDED_KERNEL_SECONDS
    return max(computing, step.kernels * LAUNCH_SECONDS)
