"""Faster generation on a CPU that computes in fp32: dequantises 4-bit weights once, not for every token.

Generation on a CPU is limited by the bandwidth of reading weights, so they are kept in fp16, half the size of fp32. NF4
values are accurate to 1 in 4,096 in fp16, and to 1 in 512 in bf16. Every processor has instructions to convert fp16. For
one row, torch has a product in fp16 that sums in fp32; for several rows, cache-sized parts of the weights become fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from llmft_cli.base.cpu_memory import has_room
from llmft_cli.base.libraries import import_bitsandbytes

CACHED_VALUES = 2**19  # values in one part of the weights; 2 MiB in fp32
FEW_ROWS = 64  # with more rows, converting all weights at once is as fast


@dataclass(frozen=True)
class DenseLinear:
    """The forward function of a linear layer, with or without an adapter.

    Attributes:
        weight: [W, scaling B] in fp16, of shape (outputs, inputs + rank).
        projection: A in fp16, of shape (rank, inputs).
        bias: of shape (outputs,), or None.
        lora: PEFT's layer, which knows whether the adapter is enabled; None without one.
    """

    weight: torch.Tensor
    projection: torch.Tensor
    bias: torch.Tensor | None
    lora: Any

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """W x + scaling B (A x) + bias, for x in fp32 of shape (..., inputs)."""
        rows = inputs.flatten(0, -2)
        outputs = self._one_row(rows[0])[None] if len(rows) == 1 else self._several_rows(rows)
        if self.bias is not None:
            outputs += self.bias
        return outputs.view(*inputs.shape[:-1], -1)

    @property
    def _adapts(self) -> bool:
        return self.lora is not None and not self.lora.disable_adapters

    def _one_row(self, row: torch.Tensor) -> torch.Tensor:
        wide = row.half()
        if self._adapts:
            wide = torch.cat((wide, torch.mv(self.projection, wide)))
        outputs = torch.mv(self.weight[:, : len(wide)], wide).float()
        # Values beyond 65,504 become infinite in fp16, and so does the sum.
        return outputs if math.isfinite(outputs.sum()) else self._several_rows(row[None])[0]

    def _several_rows(self, rows: torch.Tensor) -> torch.Tensor:
        wide = torch.cat((rows, rows @ self.projection.float().t()), -1) if self._adapts else rows
        weight = self.weight[:, : wide.shape[1]]
        if len(wide) > FEW_ROWS:
            return wide @ weight.float().t()
        outputs = wide.new_empty(len(weight), len(wide))
        step = max(1, CACHED_VALUES // weight.shape[1])
        for start in range(0, len(weight), step):
            torch.mm(weight[start : start + step].float(), wide.t(), out=outputs[start : start + step])
        return outputs.t().contiguous()


def use_dense_weights(model: torch.nn.Module) -> bool:
    """Make the linear layers of a model on the CPU use fp16 weights, for inference only.

    Adapters can still be disabled. The model is changed in place.

    Args:
        model: one that has not answered yet: bitsandbytes then packs 4-bit weights anew for processors with bf16
            instructions, and they cannot be dequantised any more.

    Returns:
        Whether the weights fit in free RAM; if not, nothing is changed.
    """
    modules: list[Any] = list(model.modules())
    linears = [module for module in modules if is_linear(module)]
    if not has_room(sum(2 * module.in_features * module.out_features for module in linears)):
        return False
    adapted = {module.get_base_layer(): module for module in modules if is_plain_lora(module)}
    for linear in linears:
        lora = adapted.get(linear)
        (lora or linear).forward = dense(linear, lora)
    return True


def is_linear(module: Any) -> bool:
    """Whether it is a frozen linear layer of torch, or a 4-bit one."""
    frozen = type(module) is torch.nn.Linear and not module.weight.requires_grad
    return frozen or isinstance(module, import_bitsandbytes().nn.Linear4bit)


def is_plain_lora(module: Any) -> bool:
    """Whether it is a plain LoRA layer of PEFT: one adapter, no variant such as DoRA, no bias."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer) or list(module.lora_A) != ["default"]:
        return False
    return not module.lora_variant and not module.lora_bias["default"]


def dense(linear: Any, lora: Any = None) -> DenseLinear:
    weight = values_of(linear).half()
    if lora is None:
        return DenseLinear(weight, weight[:0], linear.bias, None)
    lora_a, lora_b = lora.lora_A["default"].weight.detach(), lora.lora_B["default"].weight.detach()
    scaled = (lora_b.float() * lora.scaling["default"]).half()
    return DenseLinear(torch.cat((weight, scaled), -1), lora_a.half(), linear.bias, lora)


def values_of(linear: Any) -> torch.Tensor:
    """The weight, of shape (outputs, inputs); 4-bit weights are dequantised."""
    state = getattr(linear.weight, "quant_state", None)
    weight: torch.Tensor = linear.weight.detach()
    return weight if state is None else import_bitsandbytes().functional.dequantize_4bit(weight, state)
