"""`interface.Kernels` for the `meta` device: each kernel is one custom operator that computes nothing.

`simulation.StepCounter` sees the operator and counts what it reads and writes.
"""

from __future__ import annotations

from typing import Any

import torch

from llmft_cli.training.fast.kernels.interface import Activation

library = torch.library.Library("llmft", "DEF")  # type: ignore[no-untyped-call]
library.define("kernel(Tensor[] read, Tensor(a!)[] written) -> ()")  # type: ignore[no-untyped-call]
library.impl("kernel", lambda read, written: None, "Meta")  # type: ignore[no-untyped-call]


def tell(read: list[torch.Tensor], written: list[torch.Tensor]) -> None:
    torch.ops.llmft.kernel(read, written)


def rms_norm(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, outputs: torch.Tensor, scales: torch.Tensor) -> None:
    tell([inputs], [outputs, scales])


def add_rms_norm(
    inputs: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    outputs: torch.Tensor,
    scales: torch.Tensor,
) -> None:
    tell([inputs, residual], [inputs, outputs, scales])


def rms_norm_backward(
    gradients: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    residual: torch.Tensor,
    outputs: torch.Tensor,
) -> None:
    tell([gradients, inputs, scales, residual], [outputs])


def gated(gate_up: torch.Tensor, activation: Activation, outputs: torch.Tensor) -> None:
    tell([gate_up], [outputs])


def gated_backward(gate_up: torch.Tensor, activation: Activation, gradients: torch.Tensor) -> None:
    tell([gate_up, gradients], [gate_up, gradients])


def rotate(source: torch.Tensor, target: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, backward: bool) -> None:
    tell([source], [target])


def norm_rotate(
    source: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    epsilon: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> None:
    tell([source], [target])


def norm_rotate_backward(
    gradients: torch.Tensor,
    inputs: torch.Tensor,
    weights: torch.Tensor,
    epsilon: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> None:
    tell([gradients, inputs], [inputs])


def dequantize(weight: Any, outputs: torch.Tensor) -> None:
    tell([weight.data], [outputs])


def fill_adapter(
    lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float, start: int, right: torch.Tensor, below: torch.Tensor
) -> None:
    tell([lora_a, lora_b], [right, below])


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, factor: int = 1) -> None:
    tell([logits], [logits, losses])
