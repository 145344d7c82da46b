"""Logging a step's values while the GPU computes the next step.

Trainer reads loss and gradient norm from the GPU at the end of each logged step. It waits until the GPU is done, and then
the GPU waits for the next step to be launched: 1/8 of the time for a small model. Here the values are copied
asynchronously at the end of their step, and read after the next step has been launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class DeferredLog:
    """The data for Trainer's log of a step.

    Attributes:
        step, epoch: of Trainer's state at the end of the step.
        figures: sum of the losses since the last log and the gradient norm, if any; on the host once `copied` is done.
        arguments, learning_rate: further arguments of `Trainer._maybe_log_save_evaluate`.
    """

    step: int
    epoch: float | None
    figures: torch.Tensor
    copied: torch.cuda.Event
    arguments: tuple[Any, ...]
    learning_rate: float | None

    def fetched(self) -> list[torch.Tensor]:
        """The figures; waits for the GPU."""
        self.copied.synchronize()
        return list(self.figures.unbind())


def defer_log(
    step: int,
    epoch: float | None,
    loss: torch.Tensor,
    gradient_norm: torch.Tensor | None,
    arguments: tuple[Any, ...],
    learning_rate: float | None,
) -> DeferredLog:
    """Start copying a step's figures, and reset the sum of its losses to zero."""
    figures = [loss] if gradient_norm is None else [loss, gradient_norm.to(loss)]
    copies = torch.stack(figures).to("cpu", non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    loss.zero_()
    return DeferredLog(step, epoch, copies, copied, arguments, learning_rate)
