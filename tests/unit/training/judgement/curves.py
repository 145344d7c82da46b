"""Curves of real trainings of SmolLM2-135M, and facts made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmft_cli.training.judgement.curve import Curve, Point
from llmft_cli.training.judgement.facts import Facts

FACTS = Facts(
    run=Path("runs/mine"),
    curve=Curve((), (), None),
    steps=100,
    planned_steps=100,
    num_epochs=3.0,
    learning_rate=1e-3,
    held_out_rows=20,
    held_out_tokens=400,
    kept_step=None,
    training_rows=380,
)


def points(losses: Sequence[float], every: int) -> tuple[Point, ...]:
    """Losses at every so many steps."""
    return tuple(Point(every * (number + 1), loss) for number, loss in enumerate(losses))


def facts(
    held_out: Sequence[float] = (), start: float | None = None, training: Sequence[float] = (), every: int = 20, **changes: Any
) -> Facts:
    """Facts of a training that was evaluated `every` so many steps, and kept the best evaluation that beats the start."""
    curve = Curve(points(training, 1), points(held_out, every), start)
    steps = every * len(held_out) or 100
    kept = None if curve.beats_start is False or curve.lowest is None else curve.lowest.step
    return replace(FACTS, **{"curve": curve, "steps": steps, "planned_steps": steps, "kept_step": kept, **changes})
