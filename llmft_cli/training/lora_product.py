"""The product of a LoRA layer as one autograd function, in the base model's own type.

PEFT's forward keeps a copy of the input in the adapter's type, the adapter's output and its scaled
copy, and adds them out of place. Written as one function, a layer keeps its input and the rank-r
product. The formulas are those of LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685):
y = x W^T + s (x A^T) B^T.

The sum matters in 16 bits. Of what is added to a base output that was rounded before, as PEFT does it,
all that is below half of that output's last bit is lost, always: at the start of a training most of the
update. `addmm` loses as much, as cuBLAS rounds the product before it adds (benchmarks/LOG.md has both
measured). So both are one product here, [x, x A^T] [W, s B]^T, which is summed in fp32 and rounded once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from llmft_cli.adapters import is_plain
from llmft_cli.libraries import import_bitsandbytes
from llmft_cli.training.fast.joined_linear import ALIGNMENT

if TYPE_CHECKING:
    from peft import PeftModel


class LoraProduct(torch.autograd.Function):
    """x W^T + bias + scaling (x' A^T) B^T for a frozen W, where x' is x, or x after dropout.

    A and B may be of a higher type than x: they are rounded to x's for the products, and their
    gradients are returned in their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        adapter_inputs: torch.Tensor,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        base: Any,
        scaling: float,
    ) -> torch.Tensor:
        rows, adapter_rows = inputs.flatten(0, -2), adapter_inputs.flatten(0, -2)
        projected = adapter_rows @ lora_a.to(rows.dtype).t()
        inner = beside(rows, projected)
        outer = beside(frozen_weight(base, rows.dtype), (lora_b * scaling).to(rows.dtype)).t()
        # Not a view of what is computed here, which models may not change in place (Falcon adds to it).
        result = rows.new_empty(*inputs.shape[:-1], len(lora_b))
        flat = result.view(-1, len(lora_b))
        if base.bias is None:
            torch.mm(inner, outer, out=flat)
        else:
            torch.addmm(base.bias, inner, outer, out=flat)
        ctx.save_for_backward(adapter_rows, projected, lora_a, lora_b)
        ctx.base, ctx.scaling, ctx.same_inputs = base, scaling, adapter_inputs is inputs
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        adapter_rows, projected, lora_a, lora_b = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        kind, shape = gradient.dtype, (*gradients[0].shape[:-1], -1)
        for_projected = gradient @ lora_b.to(kind)
        for_a = (for_projected.t() @ adapter_rows).to(lora_a.dtype).mul_(ctx.scaling)
        for_b = (gradient.t() @ projected).to(lora_b.dtype).mul_(ctx.scaling)
        for_inputs = for_adapter_inputs = None
        scaled_a = (lora_a * ctx.scaling).to(kind)
        if ctx.needs_input_grad[0]:
            weight = frozen_weight(ctx.base, kind)
            if ctx.same_inputs:
                gradient, weight = beside(gradient, for_projected), beside(weight, scaled_a, dim=0)
            for_inputs = (gradient @ weight).view(shape)
        if ctx.needs_input_grad[1] and not ctx.same_inputs:
            for_adapter_inputs = (for_projected @ scaled_a).view(shape)
        return for_inputs, for_adapter_inputs, for_a, for_b, None, None


def beside(base: torch.Tensor, adapter: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """Both as one matrix along a dimension, with zeros behind them up to a multiple that tensor cores read fastest."""
    shape = list(base.shape)
    shape[dim] = -(base.shape[dim] + adapter.shape[dim]) % ALIGNMENT
    return torch.cat([base, adapter, base.new_zeros(shape)], dim)


def frozen_weight(base: Any, kind: torch.dtype) -> torch.Tensor:
    """The weight of a 4-bit or dense linear layer, of shape (outputs, inputs)."""
    weight: Any = base.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.to(kind)  # type: ignore[no-any-return]
    return import_bitsandbytes().functional.dequantize_4bit(weight, state).to(kind)  # type: ignore[no-any-return]


def use_fused_products(model: PeftModel) -> None:
    """Let the LoRA layers of the model compute their product with `LoraProduct` while it trains.

    Only for plain LoRA (`tuned_model.computes_in_base_type`), and of its layers for the linear ones: GPT-2's Conv1D
    has its weight the other way round, and an embedding has no product. The model is changed in place.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        base = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if isinstance(base, torch.nn.Linear) and is_plain(base):
            module.forward = partial(fused_forward, module, module.forward)


def fused_forward(layer: Any, plain_forward: Any, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A LoRA layer's forward; without gradients it is PEFT's own, as in chat and eval."""
    if not torch.is_grad_enabled():
        return plain_forward(inputs, *args, **kwargs)  # type: ignore[no-any-return]
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    # An identity where there is no dropout: the same tensor then, and nothing more to keep.
    adapter_inputs = layer.lora_dropout["default"](inputs)
    base, scaling = layer.get_base_layer(), layer.scaling["default"]
    result: torch.Tensor = LoraProduct.apply(inputs, adapter_inputs, lora_a, lora_b, base, scaling)  # type: ignore[no-untyped-call]
    return result
