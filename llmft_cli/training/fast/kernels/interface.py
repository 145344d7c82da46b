"""The elementwise parts of a layer, each one pass over memory; which implementation runs depends on the device.

Tensors are matrices whose rows are tokens; their columns stand side by side, their rows may stand further apart.
What is written is always given by the caller, so that nothing is allocated here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

Activation = Literal["silu", "gelu_tanh"]


class Kernels(Protocol):
    """One implementation: Triton's on a GPU where it is there, torch's, or on `meta` one that only tells of the work."""

    def rms_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, outputs: torch.Tensor, scales: torch.Tensor
    ) -> None:
        """outputs = weight * (scales * inputs) with scales = 1 / rms(inputs), what is in brackets rounded to the weight's type.

        So a weight of the inputs' type makes it Llama's norm, and one of fp32 makes it Gemma's.

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
        """inputs += residual, then `rms_norm` of them."""

    def rms_norm_backward(
        self,
        gradients: torch.Tensor,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor,
        residual: torch.Tensor,
        outputs: torch.Tensor,
    ) -> None:
        """outputs = residual + the gradient of `rms_norm`'s inputs; outputs may be gradients."""

    def gated(self, gate_up: torch.Tensor, activation: Activation, outputs: torch.Tensor) -> None:
        """outputs = activation(gate) * up, for gate and up side by side."""

    def gated_backward(self, gate_up: torch.Tensor, activation: Activation, gradients: torch.Tensor) -> None:
        """gate_up becomes its gradient, and gradients become what `gated` gave."""

    def rotate(
        self, source: torch.Tensor, target: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, backward: bool
    ) -> None:
        """Rotary embedding of heads side by side, into target, which may be source; backward is the rotation back.

        Args:
            cosines: of shape (tokens, head_dim), as sines.
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
        """`rms_norm` of each head, rounded, and `rotate` of that.

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
        """inputs, which were the source of `norm_rotate`, become their gradient."""

    def dequantize(self, weight: Any, outputs: torch.Tensor) -> None:
        """The values of a 4-bit weight of bitsandbytes, of shape (outputs, inputs)."""

    def fill_adapter(
        self, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float, start: int, right: torch.Tensor, below: torch.Tensor
    ) -> None:
        """right = scaling * lora_b from column start on, and zeros beside it; below = lora_a, and zeros in rows behind it.

        Args:
            lora_a: of shape (rank, inputs), and lora_b of (outputs, rank); their rows stand together.
        """

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, factor: int = 1) -> None:
        """losses = negative log-likelihood of the targets in nats, in fp32; logits become factor * the gradient of their sum.

        A negative target has no loss and no gradient.
        """
