"""Scaled gradients for steps in fp16 without autocast, so that small ones keep their bits and large ones do no harm.

The scale travels in what a pass divides its loss by, so that a recorded pass takes it as it takes the number of tokens.
torch's GradScaler keeps it: after a step whose gradients are not finite, which is skipped, it is halved, and after 2,000
others it is doubled. accelerate steps through that scaler and Trainer saves it, as they do under autocast. On a GPU nothing
waits for the gradients, where the optimizer skips its step by itself (torch's fused AdamW).
"""

from __future__ import annotations

from typing import Any

import torch

# Begun at 65,536 it takes 17 skipped steps to get below: what overflows then does so whatever the scale.
LEAST_SCALE = 1.0


class LossScale:
    """What gradients are multiplied with between the loss and the optimizer.

    Attributes:
        scaler: that of accelerate's optimizer.
    """

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type)
        self._one = torch.ones((), device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    def now(self) -> torch.Tensor:
        """The scale, a power of two, where the gradients are."""
        scaled: torch.Tensor = self.scaler.scale(self._one)
        return scaled

    def unscale(self, optimizer: Any) -> None:
        """Divide the gradients by it, and note whether they are finite."""
        self.scaler.unscale_(optimizer)

    def count(self, gradient_norm: torch.Tensor) -> None:
        """Count the step as skipped if its gradients are not finite."""
        self._skipped += ~torch.isfinite(gradient_norm)

    @property
    def skipped_steps(self) -> int:
        """Since training began or was resumed; a GPU is waited for."""
        return int(self._skipped.item())

    @property
    def is_too_small(self) -> bool:
        """Whether a smaller one would help no more; a GPU is waited for."""
        return self.scaler.get_scale() < LEAST_SCALE
