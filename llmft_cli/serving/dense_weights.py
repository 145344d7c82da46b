"""Answers on a CPU that computes in fp32: 4-bit weights are dequantised once, not at every token.

A CPU gives an answer as fast as it reads the weights. So they are held in fp16, in half of fp32's bytes: an NF4 value to
1 part in 4,096, where bf16 has it to 1 in 512. Every processor has instructions that convert fp16 and, for one row, torch
has a product of it that sums in fp32. For several rows, parts of the weights that the cache holds become fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from llmft_cli.base.cpu_memory import has_room
from llmft_cli.base.libraries import import_bitsandbytes

CACHED_VALUES = 2**19  # of a part of the weights; 2 MiB in fp32
FEW_ROWS = 64  # with more, the whole product is as fast


@dataclass(frozen=True)
class DenseLinear:
    """What a linear layer computes, with an adapter or without.

    Attributes:
        weight: [W, scaling B] in fp16, of shape (outputs, inputs + rank).
        projection: A in fp16, of shape (rank, inputs).
        bias: of shape (outputs,), or None.
        lora: PEFT's layer, which says whether the adapter is switched on; None without one.
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
        # What is beyond 65,504 becomes infinite in fp16, and so does the sum.
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
    """Let the linear layers of a model on the CPU compute from weights in fp16. It gives answers then, and no gradients.

    Adapters can still be switched off. The model is changed in place.

    Returns:
        Whether the RAM that is free has room for it; nothing is changed otherwise.
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
    """Whether it is a frozen linear layer of torch, or one in 4 bits."""
    frozen = type(module) is torch.nn.Linear and not module.weight.requires_grad
    return frozen or isinstance(module, import_bitsandbytes().nn.Linear4bit)


def is_plain_lora(module: Any) -> bool:
    """Whether it is PEFT's linear layer with one adapter of two matrices and nothing more."""
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
    """The weight, of shape (outputs, inputs); of 4 bits, what they stand for."""
    state = getattr(linear.weight, "quant_state", None)
    weight: torch.Tensor = linear.weight.detach()
    return weight if state is None else import_bitsandbytes().functional.dequantize_4bit(weight, state)
