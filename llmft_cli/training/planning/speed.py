"""How long a step will take, from what it computes and moves and what the device was measured to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmft_cli.training.planning.simulation import Step

# Fitted by least squares (of logarithms, those of outliers taken by their amount) to 65 steps measured on an H100: 30 with
# plain layers (benchmarks/results/memory-h100.json) and 35 with fast ones, replayed as CUDA graphs (memory-fast-h100.json).
# Of the latter 33 are predicted within 6% and all within 11%. Of the former 23 are within 10%; the worst are passes that
# launches bound, between 33% too fast and 26% too slow.
PRODUCT_SHARE = 0.911
BANDWIDTH_SHARE = 0.78
# FlashAttention-2 reaches 354 of 799 TFLOP/s there; cuDNN's takes its place where each sequence is one row.
PACKED_ATTENTION_SHARE = 0.44
UNPACKED_ATTENTION_SHARE = 0.724
# Replayed kernels follow each other without the processor; otherwise Python launches them, which takes longer than most.
RECORDED_KERNEL_SECONDS, LAUNCH_SECONDS = 2.92e-6, 81e-6


@dataclass(frozen=True)
class Rates:
    """What a device does in a second: operations of 16-bit products (those computed in), and bytes moved in its memory."""

    bf16_flops_per_second: float
    bandwidth_bytes_per_second: float


# Of an H100 80GB, to rank plans where nothing was measured: what a card does faster another does faster too.
REFERENCE_RATES = Rates(790e12, 2.9e12)


def step_seconds(step: Step, rates: Rates, *, packed: bool, recorded: bool) -> float:
    """Predicted time of one forward and backward pass.

    Args:
        packed: whether a sequence has more than one row.
        recorded: whether it is replayed as a CUDA graph. Otherwise the processor launches kernels while the device computes,
            and the slower of them decides.
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
