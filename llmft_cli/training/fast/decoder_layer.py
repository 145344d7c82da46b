"""A decoder layer of the Llama family as one autograd function, forward and backward written out.

    a = hidden + o(attention(rotated q, k, v of norm(hidden)))
    out = a + down(activation(gate) * up of norm(a))

Models with norms of heads (Qwen3) normalise each head of q and k before they rotate it, and some (Gemma 3) have
norms of what attention and MLP give, before it is added.

What the backward pass needs is kept, or computed again from the layer's input: then without the last
product, which no gradient needs. The activation is always computed again, which costs one pass over
memory; what norms gave is not, as the gradients behind them can do without (`JoinedLinear.backward`).
Buffers are used again for the gradients of what they held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llmft_cli.training.fast.block import Angles, Block, Given, KeptAttention, KeptMlp
from llmft_cli.training.fast.joined_linear import JoinedLinear, Norm


class DecoderLayer(torch.autograd.Function):
    """hidden of shape (batch, length, size) to the same; gradients go to hidden and to the adapters."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, block: Block, angles: Angles, options: dict[str, Any], *adapters: torch.Tensor
    ) -> torch.Tensor:
        rows = hidden.flatten(0, 1)
        elsewhere = block.offloaded if block.recompute else None
        if elsewhere is not None:
            elsewhere.put(block.index, rows)
        attention, mlp = up_to_mlp(block, rows, hidden.shape, angles, options, with_graph=not block.recompute)
        result = through_down(block, mlp)
        result += mlp.inputs
        ctx.save_for_backward(*([] if elsewhere else [rows]))
        ctx.block, ctx.elsewhere, ctx.angles, ctx.options, ctx.shape = block, elsewhere, angles, options, hidden.shape
        ctx.kept = None if block.recompute else (attention, mlp)
        return result.view(hidden.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (rows,) = ctx.saved_tensors if ctx.elsewhere is None else [ctx.elsewhere.take(ctx.block.index)]
        block, kept = ctx.block, ctx.kept
        ctx.kept = None
        if kept is None:
            kept = up_to_mlp(block, rows, ctx.shape, ctx.angles, ctx.options, with_graph=True)
            if block.mlp_output_norm is not None:
                through_down(block, kept[1])
        attention, mlp = kept
        for_mlp, for_stream = mlp_backward(block, mlp, gradients[0].flatten(0, 1))
        del kept, mlp  # gate and up take as much memory as all that the attention keeps
        for_attention, for_hidden = attention_backward(
            block, attention, rows, for_stream, ctx.angles, wanted=ctx.needs_input_grad[0]
        )
        in_shape = None if for_hidden is None else for_hidden.view(ctx.shape)
        return in_shape, None, None, None, *for_attention, *for_mlp


def up_to_mlp(
    block: Block, rows: torch.Tensor, shape: torch.Size, angles: Angles, options: dict[str, Any], with_graph: bool
) -> tuple[KeptAttention, KeptMlp]:
    """The layer up to gate and up.

    Args:
        with_graph: whether the attention can be asked for gradients.
    """
    qkv_projected, qkv, scales = normalised_product(block, block.qkv, rows, block.input_norm)
    parts = [part.detach().requires_grad_(with_graph) for part in rotated(block, qkv, angles)]
    with torch.set_grad_enabled(with_graph):
        heads = (part.view(*shape[:-1], -1, block.head_dim).transpose(1, 2) for part in parts)
        attended = block.attention(*heads, **options).reshape(len(rows), -1)
    wide = block.o.widened(len(rows), block.o.inputs)
    wide[:, : block.o.inputs] = attended.detach()
    stream = torch.empty_like(rows)
    o_projected = block.o.product(block.o.matrix(block.workspace), wide, stream)
    del wide
    stream, output = normalised_output(block, block.attention_output_norm, stream)
    attention = KeptAttention(qkv, parts, attended, scales, qkv_projected, o_projected, output)
    gate_up_projected, gate_up, scales = normalised_product(block, block.gate_up, stream, block.attention_norm, residual=rows)
    return attention, KeptMlp(stream, gate_up, scales, gate_up_projected)


def through_down(block: Block, kept: KeptMlp) -> torch.Tensor:
    """What the MLP adds to the residual stream, from gate and up; what of it the backward pass needs is kept."""
    act = block.down.widened(len(kept.gate_up), block.down.inputs)
    block.kernels.gated(kept.gate_up[:, : block.gate_up.outputs], block.activation, act[:, : block.down.inputs])
    result = torch.empty_like(kept.inputs)
    kept.down_projected = block.down.product(block.down.matrix(block.workspace), act, result)
    result, kept.output = normalised_output(block, block.mlp_output_norm, result)
    return result


def normalised_output(block: Block, norm: torch.Tensor | None, rows: torch.Tensor) -> tuple[torch.Tensor, Given | None]:
    """Rows after a norm, and what was before it; without a norm, the rows."""
    if norm is None:
        return rows, None
    given = Given(rows, torch.empty(len(rows), dtype=torch.float32, device=rows.device))
    outputs = torch.empty_like(rows)
    block.kernels.rms_norm(rows, norm, block.epsilon, outputs, given.scales)
    return outputs, given


def with_room_before_norm(
    block: Block, linear: JoinedLinear, gradient: torch.Tensor, norm: torch.Tensor | None, given: Given | None
) -> torch.Tensor:
    """The gradient of what a linear layer gave, from that of what is added, with room behind it."""
    if norm is None or given is None:
        return linear.with_room(gradient)
    wide = linear.widened(len(gradient), linear.outputs)
    nothing = gradient.new_zeros(1, linear.outputs).expand(len(gradient), -1)
    block.kernels.rms_norm_backward(gradient, given.rows, norm, given.scales, nothing, wide[:, : linear.outputs])
    return wide


def normalised_product(
    block: Block, linear: JoinedLinear, rows: torch.Tensor, norm: torch.Tensor, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """`JoinedLinear.project` of normalised rows, their product with room behind it, and the norm's scales.

    A residual is added to the rows themselves before.
    """
    wide = linear.widened(len(rows), linear.inputs)
    scales = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    if residual is None:
        block.kernels.rms_norm(rows, norm, block.epsilon, wide[:, : linear.inputs], scales)
    else:
        block.kernels.add_rms_norm(rows, residual, norm, block.epsilon, wide[:, : linear.inputs], scales)
    outputs = linear.widened(len(rows), linear.outputs)
    projected = linear.product(linear.matrix(block.workspace), wide, outputs[:, : linear.outputs])
    return projected, outputs, scales


def rotated(block: Block, qkv: torch.Tensor, angles: Angles) -> list[torch.Tensor]:
    """Queries, keys and values for the attention; qkv are rotated themselves where no norm of heads needs them later."""
    turned = block.query_size + block.key_size
    source = qkv[:, :turned]
    if block.head_norms is None:
        target = source
        block.kernels.rotate(source, target, angles.cosines, angles.sines, backward=False)
    else:
        target = torch.empty(source.shape, dtype=source.dtype, device=source.device)
        block.kernels.norm_rotate(source, target, block.head_norms, block.epsilon, angles.cosines, angles.sines)
    return [target[:, : block.query_size], target[:, block.query_size :], qkv[:, turned : block.qkv.outputs]]


def rotated_backward(block: Block, qkv: torch.Tensor, gradients: Sequence[torch.Tensor], angles: Angles) -> None:
    """qkv, as `rotated` left them, become their gradients."""
    turned = block.query_size + block.key_size
    for gradient, start, end in zip(gradients[:2], (0, block.query_size), (block.query_size, turned), strict=True):
        target = qkv[:, start:end]
        if block.head_norms is None:
            block.kernels.rotate(gradient, target, angles.cosines, angles.sines, backward=True)
        else:
            weights = block.head_norms[start // block.head_dim : end // block.head_dim]
            block.kernels.norm_rotate_backward(gradient, target, weights, block.epsilon, angles.cosines, angles.sines)
    qkv[:, turned : block.qkv.outputs] = gradients[2]


def mlp_backward(block: Block, kept: KeptMlp, gradient: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradients of the MLP's adapters, and of the residual stream before it, with room behind for `o`."""
    down, gate_up = block.down, block.gate_up
    wide = with_room_before_norm(block, down, gradient, block.mlp_output_norm, kept.output)
    matrix = down.matrix(block.workspace, adapters_changed=False)
    down.widen_gradients(matrix, wide)
    act = down.input_gradients(matrix, wide)
    block.kernels.gated_backward(kept.gate_up[:, : gate_up.outputs], block.activation, act)
    if kept.down_projected is None:
        kept.down_projected = down.project(matrix, act)
    for_down = down.backward(*down.apart(wide), act, kept.down_projected)
    del wide, act
    matrix = gate_up.matrix(block.workspace, adapters_changed=False)
    gate_up.widen_gradients(matrix, kept.gate_up)
    norm = Norm(block.attention_norm, kept.scales)
    for_gate_up = gate_up.backward(*gate_up.apart(kept.gate_up), kept.inputs, kept.gate_up_projected, norm)
    for_normal = gate_up.input_gradients(matrix, kept.gate_up)
    for_stream = block.o.widened(len(gradient), block.o.outputs)[:, : block.o.outputs]
    block.kernels.rms_norm_backward(for_normal, kept.inputs, norm.weight, norm.scales, gradient, for_stream)
    return [*for_gate_up, *for_down], for_stream


def attention_backward(
    block: Block, kept: KeptAttention, rows: torch.Tensor, stream: torch.Tensor, angles: Angles, wanted: bool
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Gradients of the attention's adapters, and of the layer's input where it is wanted."""
    wide = with_room_before_norm(block, block.o, stream, block.attention_output_norm, kept.output)
    matrix = block.o.matrix(block.workspace, adapters_changed=False)
    block.o.widen_gradients(matrix, wide)
    for_attended = block.o.input_gradients(matrix, wide)
    for_o = block.o.backward(*block.o.apart(wide), kept.attended.detach(), kept.o_projected)
    for_parts = torch.autograd.grad(kept.attended, kept.parts, for_attended)
    del for_attended
    rotated_backward(block, kept.qkv, for_parts, angles)
    del for_parts
    if not (wanted or block.qkv.ranks):
        return for_o, None
    matrix = block.qkv.matrix(block.workspace, adapters_changed=False)
    block.qkv.widen_gradients(matrix, kept.qkv)
    norm = Norm(block.input_norm, kept.scales)
    for_qkv = block.qkv.backward(*block.qkv.apart(kept.qkv), rows, kept.qkv_projected, norm)
    if not wanted:
        return [*for_qkv, *for_o], None
    # It becomes the gradient of the layer below, which wants room behind it.
    for_normal = block.qkv.input_gradients(matrix, kept.qkv, room=block.down.ranks)
    block.kernels.rms_norm_backward(for_normal, rows, norm.weight, norm.scales, stream, for_normal)
    return [*for_qkv, *for_o], for_normal
