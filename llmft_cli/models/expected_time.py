"""How long a command will take on a CPU, told before it starts where that is more than an hour.

A CPU does little besides products here, so their number and its rate of products tell the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.base.reporter import Reporter
from llmft_cli.gpu.rates import flops_per_second
from llmft_cli.settings.quantities import format_duration

if TYPE_CHECKING:
    import torch

LONG_SECONDS = 3600
# What a training step of SmolLM2-135M with 512 tokens reaches of a CPU's rate of products (Zen 3, fp32: benchmarks/LOG.md).
SHARE_OF_RATE = 0.7
# Operations for each token and weight: a product, and in training another one for the gradient of its inputs. Answers
# are written in products of few rows, which reach about half the rate.
FORWARD, TRAINING, ANSWERING = 2, 4, 4


def warn_if_long(
    task: str, model: Any, tokens: int, operations: int, device: torch.device, compute_dtype: str, less: str, reporter: Reporter
) -> None:
    """Tell of a task on the CPU that will take more than an hour.

    Args:
        task: what it is called at the beginning of a sentence.
        tokens: that pass through the model.
        operations: `FORWARD`, `TRAINING` or `ANSWERING`.
        less: what makes it shorter.
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
    """Weights of all products that a token takes part in, of adapters too."""
    linears = (module for module in model.modules() if hasattr(module, "in_features") and hasattr(module, "weight"))
    # PEFT's layers answer for the layer in them, which comes by itself.
    return sum(linear.in_features * linear.out_features for linear in linears if not hasattr(linear, "base_layer"))
