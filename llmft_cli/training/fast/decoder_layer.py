"""A decoder layer of the Llama family as one autograd function, forward and backward written out.

    a = hidden + o(attention(rotated q, k, v of norm(hidden)))
    out = a + down(activation(gate) * up of norm(a))

Some models normalise each head of q and k before the rotation (Qwen3), and some normalise the outputs of attention
and MLP before they are added (Gemma 3).

The backward pass keeps what it needs, or recomputes it from the layer's input. Recomputing leaves out the last product,
which no gradient needs. The activation is always recomputed, at the cost of one pass over memory. Outputs of norms are
neither kept nor recomputed: the gradients do without them (`JoinedLinear.backward`). Buffers are reused for the
gradients of what they held.

Shapes: tokens = batch * length; hidden is the model's width; query and key are the columns of all query heads and of all
key heads; qkv = query + 2 key; gate_up is twice the MLP's width; ranks are the adapters' columns, padded (`JoinedLinear`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from llmft_cli.training.fast.block import Angles, Block, KeptAttention, KeptMlp, NormInput
from llmft_cli.training.fast.joined_linear import JoinedLinear, Norm


class DecoderLayer(torch.autograd.Function):
    """Hidden states of shape (batch, length, hidden) to the same shape; gradients go to them and to the adapters."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, block: Block, angles: Angles, options: dict[str, Any], *adapters: torch.Tensor
    ) -> torch.Tensor:
        rows = hidden.flatten(0, 1)  # (tokens, hidden)
        elsewhere = block.offloaded if block.recompute else None
        if elsewhere is not None:
            elsewhere.put(block.index, rows)
        attention, mlp = up_to_mlp(block, rows, hidden.shape, angles, options, with_graph=not block.recompute)
        result = through_down(block, mlp)  # (tokens, hidden)
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
        del kept, mlp  # gate and up take as much memory as everything the attention keeps
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
        rows: the layer's input, of shape (tokens, hidden).
        shape: of the layer's input, (batch, length, hidden).
        with_graph: whether autograd records the attention, for its gradients.
    """
    # qkv_projected: (tokens, ranks), qkv: (tokens, qkv + ranks), scales: (tokens,)
    qkv_projected, qkv, scales = normalised_product(block, block.qkv, rows, block.input_norm)
    # three: (tokens, query), (tokens, key), (tokens, key)
    parts = [part.detach().requires_grad_(with_graph) for part in rotated(block, qkv, angles)]
    with torch.set_grad_enabled(with_graph):
        # three: (batch, heads, length, head_dim)
        heads = (part.view(*shape[:-1], -1, block.head_dim).transpose(1, 2) for part in parts)
        attended = block.attention(*heads, **options).reshape(len(rows), -1)  # (tokens, query)
    wide = block.o.widened(len(rows), block.o.inputs)  # (tokens, query + ranks)
    wide[:, : block.o.inputs] = attended.detach()
    stream = torch.empty_like(rows)  # (tokens, hidden)
    o_projected = block.o.product(block.o.matrix(block.workspace), wide, stream)
    del wide
    stream, output = normalised_output(block, block.attention_output_norm, stream)
    attention = KeptAttention(qkv, parts, attended, scales, qkv_projected, o_projected, output)
    # gate_up: (tokens, gate_up + ranks); `stream` is the residual stream from here on
    gate_up_projected, gate_up, scales = normalised_product(block, block.gate_up, stream, block.attention_norm, residual=rows)
    return attention, KeptMlp(stream, gate_up, scales, gate_up_projected)


def through_down(block: Block, kept: KeptMlp) -> torch.Tensor:
    """What the MLP adds to the residual stream, from gate and up; the parts that the backward pass needs are kept."""
    act = block.down.widened(len(kept.gate_up), block.down.inputs)  # (tokens, gate_up / 2 + ranks)
    block.kernels.gated(kept.gate_up[:, : block.gate_up.outputs], block.activation, act[:, : block.down.inputs])
    result = torch.empty_like(kept.inputs)  # (tokens, hidden)
    kept.down_projected = block.down.product(block.down.matrix(block.workspace), act, result)
    result, kept.output = normalised_output(block, block.mlp_output_norm, result)
    return result


def normalised_output(block: Block, norm: torch.Tensor | None, rows: torch.Tensor) -> tuple[torch.Tensor, NormInput | None]:
    """The norm's output for rows of shape (tokens, hidden), and its input; without a norm, the rows themselves."""
    if norm is None:
        return rows, None
    before = NormInput(rows, torch.empty(len(rows), dtype=torch.float32, device=rows.device))
    outputs = torch.empty_like(rows)
    block.kernels.rms_norm(rows, norm, block.epsilon, outputs, before.scales)
    return outputs, before


def with_room_before_norm(
    block: Block, linear: JoinedLinear, gradient: torch.Tensor, norm: torch.Tensor | None, before: NormInput | None
) -> torch.Tensor:
    """The gradient of a linear layer's outputs, with room behind it, from the gradient of what joins the stream.

    Args:
        gradient: of shape (tokens, outputs).
        norm: the weight of the norm between the two, if any.
        before: what the norm was given.
    """
    if norm is None or before is None:
        return linear.with_room(gradient)
    wide = linear.widened(len(gradient), linear.outputs)  # (tokens, outputs + ranks)
    nothing = gradient.new_zeros(1, linear.outputs).expand(len(gradient), -1)
    block.kernels.rms_norm_backward(gradient, before.rows, norm, before.scales, nothing, wide[:, : linear.outputs])
    return wide


def normalised_product(
    block: Block, linear: JoinedLinear, rows: torch.Tensor, norm: torch.Tensor, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """`JoinedLinear.project` of normalised rows, their product with room behind it, and the norm's scales.

    Args:
        rows: of shape (tokens, inputs).
        residual: added to the rows in place first.

    Returns:
        Of shapes (tokens, ranks), (tokens, outputs + ranks) and (tokens,).
    """
    wide = linear.widened(len(rows), linear.inputs)  # (tokens, inputs + ranks)
    scales = torch.empty(len(rows), dtype=torch.float32, device=rows.device)  # (tokens,)
    if residual is None:
        block.kernels.rms_norm(rows, norm, block.epsilon, wide[:, : linear.inputs], scales)
    else:
        block.kernels.add_rms_norm(rows, residual, norm, block.epsilon, wide[:, : linear.inputs], scales)
    outputs = linear.widened(len(rows), linear.outputs)  # (tokens, outputs + ranks)
    projected = linear.product(linear.matrix(block.workspace), wide, outputs[:, : linear.outputs])
    return projected, outputs, scales


def rotated(block: Block, qkv: torch.Tensor, angles: Angles) -> list[torch.Tensor]:
    """Queries, keys and values for the attention, of shapes (tokens, query), (tokens, key) and (tokens, key).

    qkv are rotated in place, unless a norm of heads needs them as they were in the backward pass.
    """
    turned = block.query_size + block.key_size
    source = qkv[:, :turned]  # (tokens, query + key)
    if block.head_norms is None:
        target = source
        block.kernels.rotate(source, target, angles.cosines, angles.sines, backward=False)
    else:
        target = torch.empty(source.shape, dtype=source.dtype, device=source.device)
        block.kernels.norm_rotate(source, target, block.head_norms, block.epsilon, angles.cosines, angles.sines)
    return [target[:, : block.query_size], target[:, block.query_size :], qkv[:, turned : block.qkv.outputs]]


def rotated_backward(block: Block, qkv: torch.Tensor, gradients: Sequence[torch.Tensor], angles: Angles) -> None:
    """Replace qkv, as `rotated` left them, by their gradients, from those of its three results."""
    turned = block.query_size + block.key_size
    for gradient, start, end in zip(gradients[:2], (0, block.query_size), (block.query_size, turned), strict=True):
        target = qkv[:, start:end]  # (tokens, query) or (tokens, key)
        if block.head_norms is None:
            block.kernels.rotate(gradient, target, angles.cosines, angles.sines, backward=True)
        else:
            weights = block.head_norms[start // block.head_dim : end // block.head_dim]  # (heads, head_dim)
            block.kernels.norm_rotate_backward(gradient, target, weights, block.epsilon, angles.cosines, angles.sines)
    qkv[:, turned : block.qkv.outputs] = gradients[2]


def mlp_backward(block: Block, kept: KeptMlp, gradient: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradients of the MLP's adapters, and of the residual stream before it, which has room behind it for `o`.

    Args:
        gradient: of the layer's output, of shape (tokens, hidden).
    """
    down, gate_up = block.down, block.gate_up
    wide = with_room_before_norm(block, down, gradient, block.mlp_output_norm, kept.output)  # (tokens, hidden + ranks)
    matrix = down.matrix(block.workspace, adapters_changed=False)
    down.widen_gradients(matrix, wide)
    act = down.input_gradients(matrix, wide)  # (tokens, gate_up / 2): the gradient of the activation's output,
    block.kernels.gated_backward(kept.gate_up[:, : gate_up.outputs], block.activation, act)  # and now that output itself
    if kept.down_projected is None:
        kept.down_projected = down.project(matrix, act)
    for_down = down.backward(*down.apart(wide), act, kept.down_projected)
    del wide, act
    matrix = gate_up.matrix(block.workspace, adapters_changed=False)
    gate_up.widen_gradients(matrix, kept.gate_up)
    norm = Norm(block.attention_norm, kept.scales)
    for_gate_up = gate_up.backward(*gate_up.apart(kept.gate_up), kept.inputs, kept.gate_up_projected, norm)
    for_normal = gate_up.input_gradients(matrix, kept.gate_up)  # (tokens, hidden)
    # (tokens, hidden), within (tokens, hidden + ranks)
    for_stream = block.o.widened(len(gradient), block.o.outputs)[:, : block.o.outputs]
    block.kernels.rms_norm_backward(for_normal, kept.inputs, norm.weight, norm.scales, gradient, for_stream)
    return [*for_gate_up, *for_down], for_stream


def attention_backward(
    block: Block, kept: KeptAttention, rows: torch.Tensor, stream: torch.Tensor, angles: Angles, wanted: bool
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Gradients of the attention's adapters, and of the layer's input if wanted.

    Args:
        rows: the layer's input, of shape (tokens, hidden).
        stream: gradient of the residual stream between attention and MLP, of the same shape.
    """
    wide = with_room_before_norm(block, block.o, stream, block.attention_output_norm, kept.output)  # (tokens, hidden + ranks)
    matrix = block.o.matrix(block.workspace, adapters_changed=False)
    block.o.widen_gradients(matrix, wide)
    for_attended = block.o.input_gradients(matrix, wide)  # (tokens, query)
    for_o = block.o.backward(*block.o.apart(wide), kept.attended.detach(), kept.o_projected)
    # three: (tokens, query), (tokens, key), (tokens, key)
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
    # The layer below takes this as its gradient, and needs room behind it for its own `down`.
    for_normal = block.qkv.input_gradients(matrix, kept.qkv, room=block.down.ranks)  # (tokens, hidden)
    block.kernels.rms_norm_backward(for_normal, rows, norm.weight, norm.scales, stream, for_normal)
    return [*for_qkv, *for_o], for_normal
