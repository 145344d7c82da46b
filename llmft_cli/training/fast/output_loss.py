"""Cross entropy of an output layer that is a single matrix product; the gradient is computed in the forward pass."""

from __future__ import annotations

from typing import Any

import torch

from llmft_cli.training.fast.kernels.select import kernels_for
from llmft_cli.training.fast.products import multiply

# 64 MiB of 16-bit logits at a time; larger chunks are hardly faster.
LOGITS_PER_CHUNK = 2**25
# For a large vocabulary, most likelihoods are below 6e-5, where fp16 loses bits, and many below 6e-8, where it underflows.
# They are at most 1, so gradients of hidden states are about as large as the output layer's weights and do not overflow.
FP16_FACTOR = 2**10


class OutputLoss(torch.autograd.Function):
    """Summed negative log-likelihood, in nats, of the targets at the predicting rows; see `output_loss`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, predicting: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        kernels = kernels_for(hidden.device)
        rows = max(1, LOGITS_PER_CHUNK // len(weight))
        ctx.factor = gradient_factor(hidden.dtype)
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None  # (tokens, hidden)
        for start in range(0, len(targets), rows):
            chunk = slice(start, start + rows)
            inputs = hidden[predicting[chunk]]  # (rows, hidden)
            logits = multiply(inputs, weight.t(), inputs.new_empty(len(inputs), len(weight)))  # (rows, vocabulary)
            kernels.cross_entropy(logits, targets[chunk], losses[chunk], ctx.factor)  # logits become their gradient
            if gradient is not None:
                gradient[predicting[chunk]] = logits @ weight
            del logits
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return scale_gradient(ctx.saved_tensors[0], gradients[0], ctx.factor), None, None, None


def gradient_factor(dtype: torch.dtype) -> int:
    """The factor of the logits' gradients in the output layer, which keeps fp16 gradients from underflowing."""
    return FP16_FACTOR if dtype == torch.float16 else 1


def scale_gradient(gradient: torch.Tensor, factor: torch.Tensor, divisor: int = 1) -> torch.Tensor:
    """Multiply the gradient by a scalar, in place.

    Args:
        divisor: the `gradient_factor` contained in the gradient.

    The factor, usually 1 / tokens, stays in fp32: rounded to 16 bits, it would change the length of all gradients of a
    step by up to 0.4%. A 0-dim tensor would be rounded (on a GPU), a tensor of shape (1,) is not.
    """
    if divisor != 1:
        factor = factor / divisor
    return gradient.mul_(factor.view(1))


def output_loss(hidden: torch.Tensor, predicting: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The loss of hidden states, of shape (tokens, hidden), under an output layer without a bias.

    Args:
        predicting: the rows that have a target, each at most once, of shape (supervised tokens,).
        targets: tokens, of the same shape; IGNORED has no loss, and its row in `predicting` may be a duplicate.
        weight: frozen, of shape (vocabulary, hidden).
    """
    result: torch.Tensor = OutputLoss.apply(hidden, predicting, targets, weight)  # type: ignore[no-untyped-call]
    return result
