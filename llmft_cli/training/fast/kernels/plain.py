"""`interface.Kernels` with torch operations, for CPUs and for what Triton does not support; formulas as in transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import gelu, silu

from llmft_cli.base.libraries import import_bitsandbytes
from llmft_cli.training.fast.kernels.interface import Activation

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
}
# Input gradients of the activations, from the gradient of the output and the input.
SLOPES: dict[Activation, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu": torch.ops.aten.silu_backward,
    "gelu_tanh": partial(torch.ops.aten.gelu_backward, approximate="tanh"),
}
CACHED_VALUES = 2**19  # of a matrix; 2 MiB in fp32


def rms_norm(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, outputs: torch.Tensor, scales: torch.Tensor) -> None:
    normalised, inverses = normal(inputs, epsilon)  # (tokens, hidden), (tokens, 1)
    torch.mul(normalised.to(weight.dtype), weight, out=outputs)
    scales.copy_(inverses[:, 0])


def add_rms_norm(
    inputs: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    outputs: torch.Tensor,
    scales: torch.Tensor,
) -> None:
    inputs.add_(residual)
    rms_norm(inputs, weight, epsilon, outputs, scales)


def normal(inputs: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs divided by the root mean square of their last dimension, in fp32, and the inverse of that."""
    values = inputs.float()
    scales = torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)
    return values.mul_(scales) if values is not inputs else values * scales, scales


def rms_norm_backward(
    gradients: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    residual: torch.Tensor,
    outputs: torch.Tensor,
) -> None:
    inverses = scales[:, None]  # (tokens, 1)
    torch.add(norm_gradient(gradients, weight, inputs * inverses, inverses).to(outputs.dtype), residual, out=outputs)


def norm_gradient(
    gradients: torch.Tensor, weight: torch.Tensor, normalised: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """dx = s (w dy - n mean(n w dy)) with s = 1 / rms(x) and n = s x, in fp32; overwrites `normalised`."""
    weighted = gradients.float() * weight
    along = (weighted * normalised).mean(-1, keepdim=True)
    return weighted.sub_(normalised.mul_(along)).mul_(scales)


def gated(gate_up: torch.Tensor, activation: Activation, outputs: torch.Tensor) -> None:
    gate, up = gate_up.chunk(2, -1)  # (tokens, intermediate) each
    torch.mul(ACTIVATIONS[activation](gate), up, out=outputs)


def gated_backward(gate_up: torch.Tensor, activation: Activation, gradients: torch.Tensor) -> None:
    for rows in parts(gradients):
        gate, up = gate_up[rows].chunk(2, -1)  # (rows, intermediate) each
        gradient = gradients[rows]
        activated = ACTIVATIONS[activation](gate)
        for_activated = gradient.float() * up
        for_up = gradient * activated
        torch.mul(activated, up, out=gradient)
        gate.copy_(SLOPES[activation](for_activated, gate.float()))
        up.copy_(for_up)


def parts(matrix: torch.Tensor) -> list[slice]:
    """Slices of a matrix's rows that fit into a CPU's cache."""
    rows = max(1, CACHED_VALUES // matrix.shape[1])
    return [slice(start, start + rows) for start in range(0, len(matrix), rows)]


def rotate(source: torch.Tensor, target: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, backward: bool) -> None:
    heads, into = by_head(source, cosines), by_head(target, cosines)  # (tokens, heads, head_dim)
    first, second = heads.chunk(2, -1)  # (tokens, heads, head_dim / 2)
    signed = sines.clone()  # (tokens, head_dim)
    signed.chunk(2, -1)[1 if backward else 0].neg_()
    turned = torch.cat((second, first), -1)
    turned *= signed[:, None]
    torch.mul(heads, cosines[:, None], out=into)
    into += turned


def norm_rotate(
    source: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    epsilon: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> None:
    normalised = normal(by_head(source, cosines), epsilon)[0].to(weights.dtype) * weights
    rotate(normalised.to(source.dtype).flatten(1), target, cosines, sines, backward=False)


def norm_rotate_backward(
    gradients: torch.Tensor,
    inputs: torch.Tensor,
    weights: torch.Tensor,
    epsilon: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> None:
    back = torch.empty_like(gradients, dtype=torch.float32)
    rotate(gradients.float(), back, cosines, sines, backward=True)
    heads = by_head(inputs, cosines)  # (tokens, heads, head_dim)
    heads.copy_(norm_gradient(by_head(back, cosines), weights, *normal(heads, epsilon)))


def by_head(rows: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    """View the rows as (tokens, heads, head_dim)."""
    return rows.view(len(rows), -1, cosines.shape[-1])


def dequantize(weight: Any, outputs: torch.Tensor) -> None:
    outputs.copy_(import_bitsandbytes().functional.dequantize_4bit(weight, weight.quant_state))


def fill_adapter(
    lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float, start: int, right: torch.Tensor, below: torch.Tensor
) -> None:
    rank = len(lora_a)
    right.zero_()
    torch.mul(lora_b, scaling, out=right[:, start : start + rank])
    below[:rank].copy_(lora_a)
    below[rank:].zero_()


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, factor: int = 1) -> None:
    known, columns = targets >= 0, targets.clamp(min=0)[:, None]
    for rows in parts(logits):
        values = logits[rows].float()  # (rows, vocabulary)
        likelihoods = torch.softmax(values, -1)
        # The logarithm of the largest likelihood is safe; the target's likelihood may underflow.
        behind = values.amax(-1) - values.gather(1, columns[rows])[:, 0]
        losses[rows] = behind - likelihoods.amax(-1).log()
        likelihoods.scatter_add_(1, columns[rows], likelihoods.new_full((len(values), 1), -1.0))
        likelihoods.masked_fill_(~known[rows, None], 0)
        logits[rows] = likelihoods if factor == 1 else likelihoods.mul_(factor)
    losses[~known] = 0
