"""Loss scaling for fp16 without autocast: small gradients do not underflow, and steps that overflow are skipped.

The scale is part of the divisor of a pass's loss, so a CUDA graph takes it as an input like the number of tokens. torch's
GradScaler manages it: a step with non-finite gradients is skipped and halves the scale, 2,000 good steps double it.
accelerate steps the optimizer through that scaler and Trainer saves it, as under autocast. With an optimizer that skips
the step itself (torch's fused AdamW), nothing waits for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch

# Below this, after 17 skipped steps from the initial 65,536, an overflow does not come from the scale.
LEAST_SCALE = 1.0


class LossScale:
    """The factor of the gradients between loss and optimizer.

    Attributes:
        scaler: to be used by accelerate's optimizer.
    """

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type)
        self._one = torch.ones((), device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    def now(self) -> torch.Tensor:
        """The current scale, a power of two, as a tensor on the device."""
        scaled: torch.Tensor = self.scaler.scale(self._one)
        return scaled

    def unscale(self, optimizer: Any) -> None:
        """Divide the gradients by the scale, and record whether they are finite."""
        self.scaler.unscale_(optimizer)

    def count(self, gradient_norm: torch.Tensor) -> None:
        """Count the step as skipped if its gradients are not finite."""
        self._skipped += ~torch.isfinite(gradient_norm)

    @property
    def skipped_steps(self) -> int:
        """Since training was started or resumed; waits for the GPU."""
        return int(self._skipped.item())

    @property
    def is_too_small(self) -> bool:
        """Whether a smaller scale would not help; waits for the GPU."""
        return self.scaler.get_scale() < LEAST_SCALE
