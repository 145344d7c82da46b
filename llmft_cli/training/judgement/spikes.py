"""Spikes of a training loss: jumps that a hard batch does not explain."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from llmft_cli.training.judgement.curve import Point

# OLMo 2 (arXiv:2501.00656) counts losses at least seven standard deviations from the mean of those before. The losses of
# small batches have a long tail, so here three in a row must be that high: a hard batch is over after one step, and what
# a bad update has done to the weights is not. 100 made-up trainings of 1,000 steps, with normal logarithms of the losses
# (sigma 0.8), give 34 false alarms with two in a row and 3 with three.
DEVIATIONS = 7
IN_A_ROW = 3
WINDOW = 50  # losses before, to compare with
FEWEST_BEFORE = 10
LEAST_JUMP = 0.5  # nats: where rows are known by heart, deviations are tiny
NORMAL = 1.4826  # standard deviations in a median absolute deviation


class Spike(NamedTuple):
    """The step of the first high loss, that loss, and the median of those before."""

    step: int
    loss: float
    before: float


def spikes_in(losses: Sequence[Point]) -> list[Spike]:
    """All spikes of a training loss; losses that stay high are one."""
    found = []
    calm: list[float] = []
    number = 0
    while number < len(losses):
        bound = bound_of(calm[-WINDOW:])
        following = [point.loss for point in losses[number : number + IN_A_ROW]]
        if bound is None or len(following) < IN_A_ROW or min(following) < bound:
            calm.append(losses[number].loss)
            number += 1
            continue
        found.append(Spike(losses[number].step, losses[number].loss, statistics.median(calm[-WINDOW:])))
        while number < len(losses) and losses[number].loss >= bound:
            number += 1
    return found


def bound_of(losses: Sequence[float]) -> float | None:
    """The loss from which on one is a spike after these; None after too few."""
    if len(losses) < FEWEST_BEFORE:
        return None
    middle = statistics.median(losses)
    deviation = NORMAL * statistics.median(abs(loss - middle) for loss in losses)
    return middle + max(DEVIATIONS * deviation, LEAST_JUMP)
