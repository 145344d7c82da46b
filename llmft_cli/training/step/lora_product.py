"""The product of a LoRA layer as one autograd function, in the base model's own type.

PEFT's forward keeps a copy of the input in the adapter's type, the adapter's output and its scaled copy, and adds them
out of place. As one function, a layer keeps only its input and the rank-r product.

In 16 bits the sum matters. PEFT adds the update to a base output that is already rounded, so every update below half of
that output's last bit is lost: most of the update at the start of a training run. `addmm` loses as much, because cuBLAS
rounds the product before adding (benchmarks/LOG.md has measurements of both). So the base and the adapter are one
product here, as in fast layers: that of a `JoinedLinear` with one member.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from llmft_cli.models.target_modules import is_plain
from llmft_cli.training.fast.joined_linear import JoinedLinear, member_of

if TYPE_CHECKING:
    from peft import PeftModel


class LoraProduct(torch.autograd.Function):
    """x W^T + bias + scaling (x' A^T) B^T for a frozen W, where x' is x, or x after dropout; gradients go to x, x', A and B."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, adapter_inputs: torch.Tensor, linear: JoinedLinear, *adapter: torch.Tensor
    ) -> torch.Tensor:
        rows, adapter_rows = inputs.flatten(0, -2), adapter_inputs.flatten(0, -2)
        matrix = linear.matrix(workspace_of(linear))
        # Not a view of a tensor that this function computes: models may change the result in place (Falcon adds to it).
        result = rows.new_empty(*inputs.shape[:-1], linear.outputs)
        projected = linear.project(matrix, adapter_rows)
        linear.product(matrix, with_copied_rows(linear, rows), result.view(-1, linear.outputs), projected)
        ctx.save_for_backward(adapter_rows, projected)
        ctx.linear, ctx.same_inputs = linear, adapter_inputs is inputs
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        adapter_rows, projected = ctx.saved_tensors
        linear: JoinedLinear = ctx.linear
        shape = (*gradients[0].shape[:-1], linear.inputs)
        matrix = linear.matrix(workspace_of(linear), adapters_changed=False)
        gradient = gradients[0].flatten(0, -2)
        for_inputs = for_adapter_inputs = None
        if ctx.same_inputs and ctx.needs_input_grad[0]:
            wide = with_copied_rows(linear, gradient)  # not `with_room`: the gradient's memory may belong to others
            linear.widen_gradients(matrix, wide)
            gradient, behind = linear.apart(wide)
            for_inputs = linear.input_gradients(matrix, wide).view(shape)
        else:
            behind = gradient @ matrix[: linear.outputs, linear.inputs :]
            if ctx.needs_input_grad[0]:
                for_inputs = (gradient @ matrix[: linear.outputs, : linear.inputs]).view(shape)
            if ctx.needs_input_grad[1]:
                for_adapter_inputs = (behind @ matrix[linear.outputs :, : linear.inputs]).view(shape)
        for_adapter = linear.backward(gradient, behind, adapter_rows, projected)
        return for_inputs, for_adapter_inputs, None, *for_adapter


def workspace_of(linear: JoinedLinear) -> torch.Tensor:
    """Memory for a matrix that is not kept; plain layers do not share it, because other modules run between them."""
    return torch.empty(linear.size if linear.kept is None else 0, dtype=linear.dtype, device=linear.device)


def with_copied_rows(linear: JoinedLinear, rows: torch.Tensor) -> torch.Tensor:
    wide = linear.widened(*rows.shape)
    wide[:, : rows.shape[1]] = rows
    return wide


def use_fused_products(model: PeftModel, dtype: torch.dtype) -> None:
    """Let the linear LoRA layers of the model use `LoraProduct` while it trains; the model is changed in place.

    Only for plain LoRA (`tuned_model.computes_in_base_type`). GPT-2's Conv1D has a transposed weight and an embedding has
    no product, so both stay PEFT's own.

    Args:
        dtype: the compute type of 4-bit weights.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        base = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if isinstance(base, torch.nn.Linear) and is_plain(base):
            quantized = getattr(base.weight, "quant_state", None) is not None
            linear = JoinedLinear([member_of(module)], dtype if quantized else base.weight.dtype)
            linear.take_over_dense_weights()
            module.forward = partial(fused_forward, module, linear, module.forward)


def fused_forward(
    layer: Any, linear: JoinedLinear, plain_forward: Any, inputs: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """A LoRA layer's forward; PEFT's own without gradients (chat, eval) and for inputs of another type."""
    if not torch.is_grad_enabled() or inputs.dtype != linear.dtype:
        return plain_forward(inputs, *args, **kwargs)  # type: ignore[no-any-return]
    # Without dropout this is the same tensor, so nothing more is kept.
    adapter_inputs = layer.lora_dropout["default"](inputs)
    result: torch.Tensor = LoraProduct.apply(inputs, adapter_inputs, linear, *linear.parameters)  # type: ignore[no-untyped-call]
    return result
