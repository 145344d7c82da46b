"""The losses of a training by step, from Trainer's log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import TrainerState


class Point(NamedTuple):
    """A loss in nats per supervised token, and the optimizer step after which it was measured."""

    step: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """Losses in the order of steps.

    Attributes:
        training: mean training loss of the steps since the point before; without steps that overflowed fp16.
        held_out: the evaluations after the first step.
        start: the held-out loss before the first step; None if it was not measured.
    """

    training: tuple[Point, ...]
    held_out: tuple[Point, ...]
    start: float | None

    @property
    def lowest(self) -> Point | None:
        """The first evaluation with the lowest loss, as Trainer's choice of the best one; None without an evaluation."""
        return min(self.held_out, key=lambda point: point.loss, default=None)

    @property
    def beats_start(self) -> bool | None:
        """Whether an evaluation has a lower loss than before the first step; None if that is unknown."""
        if self.start is None or self.lowest is None:
            return None
        return self.lowest.loss < self.start


def curve_of(history: Iterable[Mapping[str, Any]]) -> Curve:
    """The curve in the rows of Trainer's `log_history`."""
    training, held_out = [], []
    for row in history:
        if "eval_loss" in row:
            held_out.append(Point(row["step"], row["eval_loss"]))
        elif "loss" in row and math.isfinite(row["loss"]):
            training.append(Point(row["step"], row["loss"]))
    start = next((point.loss for point in held_out if point.step == 0), None)
    return Curve(tuple(training), tuple(point for point in held_out if point.step > 0), start)


def step_to_keep(state: TrainerState) -> int | None:
    """The step of the best evaluation; None, for the last step, if no evaluation beats the loss before training.

    Among adapters that are worse than what they began with, the best is the one that has learned the least.
    """
    return None if curve_of(state.log_history).beats_start is False else state.best_global_step
