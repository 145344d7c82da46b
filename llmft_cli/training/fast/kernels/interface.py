"""The memory-bound kernels of a layer, each one pass over memory; the implementation depends on the device.

Tensors are matrices whose rows are tokens. Columns are contiguous; rows may have a larger stride. The caller provides all
outputs, so nothing is allocated here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

Activation = Literal["silu", "gelu_tanh"]


class Kernels(Protocol):
    """An implementation: in Triton for GPUs, in torch, or for `meta` one that only counts the work."""

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, outputs: torch.Tensor, scales: torch.Tensor
    ) -> None:
        """outputs = weight * (scales * inputs) with scales = 1 / rms(inputs); the product in brackets has the weight's type.

        A weight of the inputs' type gives Llama's norm, an fp32 weight gives Gemma's.

        Args:
            scales: of shape (rows,), in fp32.
        """

    def add_rms_norm(
        self,
        inputs: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        outputs: torch.Tensor,
        scales: torch.Tensor,
    ) -> None:
        """inputs += residual, then `rms_norm` of the sum."""

    def rms_norm_backward(
        self,
        gradients: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor,
        residual: torch.Tensor,
        outputs: torch.Tensor,
    ) -> None:
        """outputs = residual + the gradient of `rms_norm`'s inputs; `outputs` may be `gradients`."""

    def gated(self, gate_up: torch.Tensor, activation: Activation, outputs: torch.Tensor) -> None:
        """outputs = activation(gate) * up; `gate_up` holds gate and up side by side."""

    def gated_backward(self, gate_up: torch.Tensor, activation: Activation, gradients: torch.Tensor) -> None:
        """In place: `gate_up` becomes its gradient, and `gradients` become the output of `gated`."""

    def rotate(
        self, source: torch.Tensor, target: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, backward: bool
    ) -> None:
        """Rotary embedding of heads side by side, written to `target`, which may be `source`; `backward` rotates back.

        Args:
            cosines: of shape (tokens, head_dim), like sines.
        """

    def norm_rotate(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        weights: torch.Tensor,
        epsilon: float,
        cosines: torch.Tensor,
        sines: torch.Tensor,
    ) -> None:
        """`rms_norm` of each head, rounded, then `rotate`.

        Args:
            weights: of shape (heads, head_dim).
        """

    def norm_rotate_backward(
        self,
        gradients: torch.Tensor,
        inputs: torch.Tensor,
        weights: torch.Tensor,
        epsilon: float,
        cosines: torch.Tensor,
        sines: torch.Tensor,
    ) -> None:
        """In place: `inputs`, the source of `norm_rotate`, become their gradient."""

    def dequantize(self, weight: Any, outputs: torch.Tensor) -> None:
        """outputs = the values of a 4-bit bitsandbytes weight, of shape (outputs, inputs)."""

    def fill_adapter(
        self, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float, start: int, right: torch.Tensor, below: torch.Tensor
    ) -> None:
        """right = scaling * lora_b from column `start` on, zeros elsewhere; below = lora_a, zeros in the rows after it.

        Args:
            lora_a: of shape (rank, inputs); lora_b of shape (outputs, rank); both contiguous.
        """

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, factor: int = 1) -> None:
        """losses = negative log-likelihoods of the targets in nats, in fp32; `logits` become factor * the gradient of the sum.

        A negative target has neither loss nor gradient.
        """
