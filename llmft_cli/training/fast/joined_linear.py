"""Linear layers that share their input, with their adapters, as one matrix and one product.

For layers W_i with adapters s_i B_i A_i, the matrix of shape (outputs + ranks, inputs + ranks) is

    [ W_1  s_1 B_1    0    ]
    [ W_2    0     s_2 B_2 ]
    [ A_1    0       0     ]
    [ A_2    0       0     ]

The upper part gives all outputs in one product from [x, x A^T], of shape (tokens, inputs + ranks). The left part gives
the input's gradient from [dy, dy s B], of shape (tokens, outputs + ranks). So LoRA's update (Hu et al. 2021,
https://arxiv.org/abs/2106.09685) is summed in the product's own fp32, and neither outputs nor gradients of several
layers are added afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from llmft_cli.training.fast.kernels.interface import Kernels
from llmft_cli.training.fast.kernels.select import kernels_for
from llmft_cli.training.fast.products import multiply, product_in_fp32

# Rows of the matrix are padded: to 128 bytes in 16-bit types, which tensor cores read fastest, and to a cache line of 64
# bytes in fp32, where more padding only costs products (8% of a step of SmolLM2-135M on a CPU).
ALIGNED_VALUES_IN_16_BITS, ALIGNED_VALUES = 64, 16


@dataclass(frozen=True)
class Member:
    """A linear layer of the base, and its adapter if it has one."""

    base: Any
    lora_a: torch.nn.Parameter | None  # (rank, inputs)
    lora_b: torch.nn.Parameter | None  # (outputs, rank)
    scaling: float

    @property
    def rank(self) -> int:
        return 0 if self.lora_a is None else len(self.lora_a)


def member_of(linear: Any) -> Member:
    """The member for a linear layer, or for PEFT's layer around it."""
    if not hasattr(linear, "lora_A"):
        return Member(linear, None, None, 0.0)
    lora_a, lora_b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
    return Member(linear.get_base_layer(), lora_a, lora_b, linear.scaling["default"])


@dataclass(frozen=True)
class Norm:
    """A norm whose outputs are weight * scales * inputs."""

    weight: torch.Tensor  # (inputs,)
    scales: torch.Tensor  # (tokens,)


class JoinedLinear:
    """Linear layers that share their input.

    Attributes:
        inputs, outputs: columns of the base's weights, and rows of all of them.
        ranks: columns for the adapters, padded; 0 without adapters.
        size: values of the matrix.
        dtype: of the matrix, and of inputs and outputs.
        kept: the matrix, where the base's values stay in it instead of being dequantised at each use.
    """

    def __init__(self, members: list[Member], dtype: torch.dtype) -> None:
        self.members = members
        self.inputs = members[0].base.in_features
        self.outputs = sum(member.base.out_features for member in members)
        ranks = sum(member.rank for member in members)
        aligned = ALIGNED_VALUES_IN_16_BITS if dtype.itemsize == 2 else ALIGNED_VALUES
        self.ranks = ranks and -(-(self.inputs + ranks) // aligned) * aligned - self.inputs
        self.size = (self.outputs + self.ranks) * (self.inputs + self.ranks)
        self.kept: torch.Tensor | None = None
        self.dtype = dtype
        self._row_ends = list(accumulate(member.base.out_features for member in members))
        self._rank_ends = list(accumulate(member.rank for member in members))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [weights for member in self.members for weights in (member.lora_a, member.lora_b) if weights is not None]

    @property
    def device(self) -> torch.device:
        weight: torch.Tensor = self.members[0].base.weight
        return weight.device

    @property
    def is_quantized(self) -> bool:
        return any(getattr(member.base.weight, "quant_state", None) is not None for member in self.members)

    def keep(self, whether: bool) -> None:
        """Dequantise now and keep the matrix, or dequantise at each use."""
        self.kept = None
        if whether:
            matrix = torch.empty(self.size, dtype=self.dtype, device=self.device).view(-1, self.inputs + self.ranks)
            self._fill_base(matrix, kernels_for(self.device))
            self.kept = matrix

    def take_over_dense_weights(self) -> None:
        """Move weights that are not quantised into a matrix that is kept; they are views of it afterwards."""
        if self.is_quantized:
            return
        self.keep(True)
        assert self.kept is not None
        for end, member in zip(self._row_ends, self.members, strict=True):
            member.base.weight.data = self.kept[end - member.base.out_features : end, : self.inputs]

    def matrix(self, workspace: torch.Tensor, adapters_changed: bool = True) -> torch.Tensor:
        """The matrix with current values, of shape (outputs + ranks, inputs + ranks).

        Args:
            workspace: of shape (at least `size`,); the next matrix may overwrite it.
            adapters_changed: whether the adapters may have changed since the last call.
        """
        kernels = kernels_for(self.device)
        if self.kept is not None:
            if adapters_changed:
                self._fill_adapters(self.kept, kernels)
            return self.kept
        matrix = workspace[: self.size].view(-1, self.inputs + self.ranks)
        self._fill_base(matrix, kernels)
        self._fill_adapters(matrix, kernels)
        return matrix

    def _fill_base(self, matrix: torch.Tensor, kernels: Kernels) -> None:
        for end, member in zip(self._row_ends, self.members, strict=True):
            weight = member.base.weight
            target = matrix[end - member.base.out_features : end, : self.inputs]  # (outputs of the member, inputs)
            if getattr(weight, "quant_state", None) is None:
                target.copy_(weight.detach())
            else:
                kernels.dequantize(weight, target)

    def _fill_adapters(self, matrix: torch.Tensor, kernels: Kernels) -> None:
        if not self.ranks:
            return
        right, below = matrix[: self.outputs, self.inputs :], matrix[self.outputs :, : self.inputs]
        # right: (outputs, ranks), below: (ranks, inputs)
        for rows, ranks, member in self._placed():
            if member.lora_a is None or member.lora_b is None:
                right[rows].zero_()
                continue
            # The last member fills the padding, too.
            end = self.ranks if ranks.stop == self._rank_ends[-1] else ranks.stop
            lora_a, lora_b = member.lora_a.detach(), member.lora_b.detach()
            kernels.fill_adapter(lora_a, lora_b, member.scaling, ranks.start, right[rows], below[ranks.start : end])

    def _placed(self) -> list[tuple[slice, slice, Member]]:
        """Each member, its rows within outputs, and its adapter's rows within ranks."""
        return [
            (slice(end - member.base.out_features, end), slice(rank_end - member.rank, rank_end), member)
            for end, rank_end, member in zip(self._row_ends, self._rank_ends, self.members, strict=True)
        ]

    def widened(self, tokens: int, columns: int) -> torch.Tensor:
        """An uninitialised matrix of shape (tokens, columns + ranks)."""
        return torch.empty(tokens, columns + self.ranks, dtype=self.dtype, device=self.device)

    def with_room(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of shape (tokens, columns) within (tokens, columns + ranks).

        Nothing is copied where `input_gradients` of another layer left room behind them.
        """
        tokens, columns = rows.shape
        width = columns + self.ranks
        alone = rows.untyped_storage().nbytes() == tokens * width * rows.element_size()
        if alone and rows.stride() == (width, 1) and rows.dtype == self.dtype:
            return rows.as_strided((tokens, width), (width, 1))
        wide = self.widened(tokens, columns)
        wide[:, :columns] = rows
        return wide

    def project(self, matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
        """x A^T of shape (tokens, ranks) for rows of shape (tokens, inputs); None without adapters."""
        return rows @ matrix[self.outputs :, : self.inputs].t() if self.ranks else None

    def product(
        self, matrix: torch.Tensor, wide_inputs: torch.Tensor, outputs: torch.Tensor, projected: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Compute all outputs.

        Args:
            wide_inputs: of shape (tokens, inputs + ranks); the last columns are filled here.
            outputs: of shape (tokens, outputs), filled here.
            projected: `project` of the adapters' inputs, where these differ from the inputs (dropout).

        Returns:
            `project` of the adapters' inputs, of shape (tokens, ranks).
        """
        if projected is None:
            projected = self.project(matrix, wide_inputs[:, : self.inputs])
        if projected is not None:
            wide_inputs[:, self.inputs :] = projected
        weights, bias = matrix[: self.outputs].t(), self._bias()  # (inputs + ranks, outputs), (outputs,)
        if bias is None:
            multiply(wide_inputs, weights, outputs)
        else:  # added within the product, so that outputs are rounded once
            torch.addmm(bias, wide_inputs, weights, out=outputs)
        return projected

    def _bias(self) -> torch.Tensor | None:
        """Of all members, of shape (outputs,); None where no member has one."""
        biases = [member.base.bias for member in self.members]
        if all(bias is None for bias in biases):
            return None
        none = [torch.zeros(member.base.out_features, dtype=self.dtype, device=self.device) for member in self.members]
        return torch.cat([empty if bias is None else bias.to(self.dtype) for bias, empty in zip(biases, none, strict=True)])

    def backward(
        self,
        gradients: torch.Tensor,
        behind: torch.Tensor,
        inputs: torch.Tensor,
        projected: torch.Tensor | None,
        norm: Norm | None = None,
    ) -> list[torch.Tensor]:
        """Gradients of `parameters`.

        Args:
            gradients: of the outputs, of shape (tokens, outputs).
            behind: what `widen_gradients` put behind them, of shape (tokens, ranks).
            inputs: of the linear layers, or of the norm before them, of shape (tokens, inputs).
            projected: `project` of the linear layers' inputs, of shape (tokens, ranks).
            norm: the norm before them, where `inputs` are its inputs.
        """
        if projected is None:
            return []
        # Without the padding: the results are views, which would keep it alive as long as the gradients.
        behind = behind[:, : self._rank_ends[-1]]  # (tokens, all ranks)
        if norm is None:
            for_a = product_in_fp32(behind.t(), inputs)  # (all ranks, inputs)
        else:
            # Scaling the rows and columns of these small matrices replaces normalising the inputs again.
            scaled = torch.mul(behind, norm.scales[:, None], out=torch.empty_like(behind))
            for_a = product_in_fp32(scaled.t(), inputs).mul_(norm.weight)  # (all ranks, inputs)
        for_b = product_in_fp32(gradients.t(), projected)  # (outputs, ranks)
        found = []
        for rows, ranks, member in self._placed():
            if member.lora_a is None or member.lora_b is None:
                continue
            found.append(for_a[ranks].to(member.lora_a.dtype))
            found.append((for_b[rows, ranks] * member.scaling).to(member.lora_b.dtype))
        return found

    def widen_gradients(self, matrix: torch.Tensor, wide_gradients: torch.Tensor) -> None:
        """Fill the last columns of (tokens, outputs + ranks) with dy s B, from the outputs' gradients dy in the first."""
        if self.ranks:
            gradients, behind = self.apart(wide_gradients)
            torch.mm(gradients, matrix[: self.outputs, self.inputs :], out=behind)

    def apart(self, wide_gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two parts of (tokens, outputs + ranks)."""
        return wide_gradients[:, : self.outputs], wide_gradients[:, self.outputs :]

    def input_gradients(self, matrix: torch.Tensor, wide_gradients: torch.Tensor, room: int = 0) -> torch.Tensor:
        """Gradients of the inputs, of shape (tokens, inputs), from the outputs' of shape (tokens, outputs + ranks).

        Args:
            room: columns left free behind each row, for `with_room` of another layer.
        """
        wide = torch.empty(len(wide_gradients), self.inputs + room, dtype=self.dtype, device=self.device)
        return torch.mm(wide_gradients, matrix[:, : self.inputs], out=wide[:, : self.inputs])
