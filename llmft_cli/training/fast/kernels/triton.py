"""`interface.Kernels` in Triton, for NVIDIA GPUs: one launch and one pass over memory each, computed in fp32."""

from __future__ import annotations

from typing import Any

import torch
import triton

from llmft_cli.training.fast.kernels import plain
from llmft_cli.training.fast.kernels import triton_programs as programs
from llmft_cli.training.fast.kernels import triton_weight_programs as weight_programs
from llmft_cli.training.fast.kernels.interface import Activation

ELEMENTS = 1024  # per program, if several programs share a row
FILLED = 2048  # values of a matrix per program
GROUPS = 16  # blocks of a 4-bit weight per program


def warps(elements: int) -> int:
    """`num_warps` for a program that processes this many elements at a time."""
    return min(16, max(4, elements // 512))


def rms_norm(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, outputs: torch.Tensor, scales: torch.Tensor) -> None:
    launch_rms_norm(inputs, inputs, weight, epsilon, outputs, scales, add=False)


def add_rms_norm(
    inputs: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    outputs: torch.Tensor,
    scales: torch.Tensor,
) -> None:
    launch_rms_norm(inputs, residual, weight, epsilon, outputs, scales, add=True)


def launch_rms_norm(
    inputs: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    outputs: torch.Tensor,
    scales: torch.Tensor,
    add: bool,
) -> None:
    rows, size = inputs.shape
    block = triton.next_power_of_2(size)
    strides = inputs.stride(0), residual.stride(0), outputs.stride(0)
    programs.rms_norm_kernel[(rows,)](
        inputs, residual, weight, outputs, scales, *strides, size, epsilon, ADD=add, BLOCK=block, num_warps=warps(block)
    )


def rms_norm_backward(
    gradients: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    residual: torch.Tensor,
    outputs: torch.Tensor,
) -> None:
    rows, size = inputs.shape
    block = triton.next_power_of_2(size)
    strides = gradients.stride(0), inputs.stride(0), residual.stride(0), outputs.stride(0)
    programs.rms_norm_backward_kernel[(rows,)](
        gradients, inputs, weight, scales, residual, outputs, *strides, size, BLOCK=block, num_warps=warps(block)
    )


def gated(gate_up: torch.Tensor, activation: Activation, outputs: torch.Tensor) -> None:
    rows, size = outputs.shape
    strides = gate_up.stride(0), outputs.stride(0)
    grid = (rows, triton.cdiv(size, ELEMENTS))
    programs.gated_kernel[grid](gate_up, outputs, *strides, size, GELU=activation == "gelu_tanh", BLOCK=ELEMENTS)


def gated_backward(gate_up: torch.Tensor, activation: Activation, gradients: torch.Tensor) -> None:
    rows, size = gradients.shape
    strides = gate_up.stride(0), gradients.stride(0)
    grid = (rows, triton.cdiv(size, ELEMENTS))
    programs.gated_backward_kernel[grid](gate_up, gradients, *strides, size, GELU=activation == "gelu_tanh", BLOCK=ELEMENTS)


def rotate(source: torch.Tensor, target: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, backward: bool) -> None:
    launch_by_head(programs.rotate_kernel, source, target, None, 0.0, cosines, sines, NORM=False, SIGN=-1 if backward else 1)


def norm_rotate(
    source: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    epsilon: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> None:
    launch_by_head(programs.rotate_kernel, source, target, weights, epsilon, cosines, sines, NORM=True, SIGN=1)


def norm_rotate_backward(
    gradients: torch.Tensor,
    inputs: torch.Tensor,
    weights: torch.Tensor,
    epsilon: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
) -> None:
    launch_by_head(programs.norm_rotate_backward_kernel, gradients, inputs, weights, epsilon, cosines, sines)


def launch_by_head(
    kernel: Any,
    source: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None,
    epsilon: float,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    **constants: Any,
) -> None:
    """One program per token, for all its heads."""
    tokens, size = source.shape
    half = cosines.shape[1] // 2
    heads = size // (2 * half)
    block, most = triton.next_power_of_2(half), triton.next_power_of_2(heads)
    strides = source.stride(0), target.stride(0), cosines.stride(0)
    # With norm weights, each thread needs more registers per element, and it has at most 255.
    elements = block * most * (1 if weights is None else 2)
    sizes = {"HEADS": most, "HALF": half, "BLOCK": block, "num_warps": warps(elements)}
    weights = source if weights is None else weights
    kernel[(tokens,)](source, target, weights, cosines, sines, *strides, heads, epsilon, **constants, **sizes)


def dequantize(weight: Any, outputs: torch.Tensor) -> None:
    state = weight.quant_state
    rows, size = outputs.shape
    if size % state.blocksize:  # blocks that span two rows
        plain.dequantize(weight, outputs)
        return
    blocks = size // state.blocksize
    nested = bool(state.nested)
    outer = state.state2 if nested else state
    weight_programs.dequantize_kernel[(rows, triton.cdiv(blocks, GROUPS))](
        weight.data.view(torch.uint8),  # checkpoints may store the bytes with another dtype
        state.code,
        state.absmax,
        outer.code,
        outer.absmax,
        state.offset if nested else state.absmax,
        outputs,
        outputs.stride(0),
        blocks,
        NESTED=nested,
        OUTER_BLOCK=outer.blocksize,
        BLOCK=state.blocksize,
        GROUPS=GROUPS,
    )


def fill_adapter(
    lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float, start: int, right: torch.Tensor, below: torch.Tensor
) -> None:
    outputs, columns = right.shape
    rows, inputs = below.shape
    block = triton.next_power_of_2(columns)
    at_once = max(1, FILLED // block)
    weight_programs.fill_adapter_kernel[(triton.cdiv(outputs, at_once) + rows * triton.cdiv(inputs, FILLED),)](
        lora_a,
        lora_b,
        right,
        below,
        right.stride(0),
        below.stride(0),
        outputs,
        columns,
        inputs,
        len(lora_a),
        start,
        scaling,
        ROWS=at_once,
        COLUMNS=block,
        BLOCK=FILLED,
    )


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, factor: int = 1) -> None:
    rows, size = logits.shape
    block = min(8192, triton.next_power_of_2(size))
    programs.cross_entropy_kernel[(rows,)](
        logits, targets, losses, logits.stride(0), SIZE=size, BLOCK=block, FACTOR=factor, num_warps=warps(block)
    )
