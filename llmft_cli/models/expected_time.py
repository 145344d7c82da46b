"""Warns before a command that will take more than an hour on a CPU.

Nearly all of the time is spent in matrix products, so it follows from their number and the CPU's rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.base.reporter import Reporter
from llmft_cli.gpu.rates import flops_per_second
from llmft_cli.settings.quantities import format_duration

if TYPE_CHECKING:
    import torch

LONG_SECONDS = 3600
# Share of a CPU's matrix product rate in a training step of SmolLM2-135M with 512 tokens (Zen 3, fp32: benchmarks/LOG.md).
SHARE_OF_RATE = 0.7
# Operations per token and weight: a product, and in training a second one for the gradient of the inputs. Generation
# uses products of few rows, which reach about half the rate.
FORWARD, TRAINING, ANSWERING = 2, 4, 4


def warn_if_long(
    task: str, model: Any, tokens: int, operations: int, device: torch.device, compute_dtype: str, less: str, reporter: Reporter
) -> None:
    """Warn about a task on the CPU that will take more than an hour.

    Args:
        task: its name, as the subject of the message.
        tokens: tokens that pass through the model.
        operations: `FORWARD`, `TRAINING` or `ANSWERING`.
        less: advice on how to shorten it.
    """
    if device.type != "cpu":
        return
    import torch

    rate = SHARE_OF_RATE * flops_per_second(torch, "cpu", compute_dtype)
    seconds = tokens * operations * linear_weights(model) / rate
    if seconds > LONG_SECONDS:
        minutes = round(seconds / 60)
        speed = f"{tokens:,} tokens at about {tokens / seconds:,.1f} tokens/s"
        reporter.warn(f"{task} will take about {format_duration(minutes * 60)} on this CPU ({speed}): {less}")


def linear_weights(model: Any) -> int:
    """Number of weights in all linear layers, including adapters."""
    linears = (module for module in model.modules() if hasattr(module, "in_features") and hasattr(module, "weight"))
    # PEFT's layers report the sizes of the layer they wrap, which is counted on its own.
    return sum(linear.in_features * linear.out_features for linear in linears if not hasattr(linear, "base_layer"))
