"""Figures of a step that are logged while a GPU computes the next one.

Trainer reads loss and gradient norm from the GPU at the end of each step that it logs, which waits until that is
done; then the GPU waits for the next step to be launched. For a small model that is an eighth of the time.
Here they are copied at the end of their step, and read when the next step is launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LateLog:
    """What Trainer's log of a step needs.

    Attributes:
        step, epoch: of Trainer's state at its end.
        figures: sum of the losses since the last log and, where there is one, the gradient norm; in the host's memory once
            `copied` has happened.
        arguments, learning_rate: what `Trainer._maybe_log_save_evaluate` is given besides.
    """

    step: int
    epoch: float | None
    figures: torch.Tensor
    copied: torch.cuda.Event
    arguments: tuple[Any, ...]
    learning_rate: float | None

    def fetched(self) -> list[torch.Tensor]:
        """The figures, for which the GPU is waited for."""
        self.copied.synchronize()
        return list(self.figures.unbind())


def late_log(
    step: int,
    epoch: float | None,
    loss: torch.Tensor,
    gradient_norm: torch.Tensor | None,
    arguments: tuple[Any, ...],
    learning_rate: float | None,
) -> LateLog:
    """Have the figures of a step copied; the sum of its losses begins at zero again."""
    figures = [loss] if gradient_norm is None else [loss, gradient_norm.to(loss)]
    copies = torch.stack(figures).to("cpu", non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    loss.zero_()
    return LateLog(step, epoch, copies, copied, arguments, learning_rate)
