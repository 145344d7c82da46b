"""Successive halving: which trials train on after each rung, and which one is the best.

Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization". Unlike there, the
automatic recipe is kept up to the end, so that the best one is never worse than it on the held-out rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmft_cli.search.trials import AUTOMATIC, Search, Trial

FINALISTS = 2  # the automatic recipe and another one
MOST_RUNGS = 4  # an eighth of its steps tells little of a training; less of them tells nothing


def shares_of(recipes: int) -> list[float]:
    """The share of its own steps that a trial has taken at each rung."""
    rungs = 1
    while recipes > FINALISTS and rungs < MOST_RUNGS:
        recipes, rungs = math.ceil(recipes / 2), rungs + 1
    return [2.0 ** (rung + 1 - rungs) for rung in range(rungs)]


def trainings(recipes: int) -> float:
    """How many whole trainings a search takes, if all recipes took as many steps."""
    total, before = 0.0, 0.0
    for share in shares_of(recipes):
        total += recipes * (share - before)
        recipes, before = max(FINALISTS, math.ceil(recipes / 2)), share
    return total


def ranked(trials: Sequence[Trial], rung: int, metric: str) -> list[Trial]:
    """The trials by their results at a rung, the best first; of equal ones, the first. Without those that failed before it."""
    reached = [trial for trial in trials if len(trial.results) > rung]
    return sorted(reached, key=lambda trial: trial.results[rung].standing(metric))


def entrants(search: Search, rung: int) -> list[Trial]:
    """The trials that train up to a rung: of those at the rung before, the better half, and the automatic recipe."""
    if rung == 0:
        return list(search.trials.values())
    order = ranked(entrants(search, rung - 1), rung - 1, search.metric)
    kept = order[: max(FINALISTS, math.ceil(len(order) / 2))]
    automatic = search.trials[AUTOMATIC]
    if automatic in order and automatic not in kept:
        kept[-1] = automatic
    return sorted(kept, key=lambda trial: trial.number)


def finalists(search: Search) -> list[Trial]:
    """The trials that were trained to the end, the best first."""
    last = len(search.shares) - 1
    return ranked(entrants(search, last), last, search.metric)
