"""Which recipes train on after each rung."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft_cli.recipe.choices import Choice
from llmft_cli.run_dir.run import RunDir
from llmft_cli.search.halving import entrants, finalists, shares_of, trainings
from llmft_cli.search.trials import EVAL_LOSS, EXACT_MATCH, Result, Search, Trial


def trial(number: int, *losses: float, failure: str | None = None, score: float | None = None) -> Trial:
    results = tuple(Result(1.0, 10 * place, loss, score) for place, loss in enumerate(losses, 1))
    return Trial(number, {"learning_rate": Choice(1e-3, "drawn")}, {"id": "one"}, {}, 40, results, failure)


def searched(*trials: Trial, metric: str = EVAL_LOSS) -> Search:
    return Search(RunDir(Path("run")), metric, shares_of(len(trials)), {one.number: one for one in trials})


def numbers(trials: list[Trial]) -> list[int]:
    return [one.number for one in trials]


@pytest.mark.parametrize(
    ("recipes", "shares", "cost"),
    [
        (2, [1], 2),
        (3, [1 / 2, 1], 2.5),
        (4, [1 / 2, 1], 3),
        (5, [1 / 4, 1 / 2, 1], 3),
        (8, [1 / 4, 1 / 2, 1], 4),
        (16, [1 / 8, 1 / 4, 1 / 2, 1], 5),
        (32, [1 / 8, 1 / 4, 1 / 2, 1], 10),  # no rung before an eighth: four are trained to the end
    ],
)
def test_rungs(recipes: int, shares: list[float], cost: float) -> None:
    assert shares_of(recipes) == shares
    assert trainings(recipes) == cost


def test_the_better_half_goes_on() -> None:
    found = searched(trial(1, 2.0), trial(2, 5.0), trial(3, 1.0), trial(4, 4.0), trial(5, 3.0))
    assert numbers(entrants(found, 0)) == [1, 2, 3, 4, 5]
    assert numbers(entrants(found, 1)) == [1, 3, 5]


def test_the_automatic_recipe_takes_the_place_of_the_worst_that_would_go_on() -> None:
    found = searched(trial(1, 9.0, 8.0), trial(2, 1.0, 0.9), trial(3, 2.0), trial(4, 3.0), trial(5, 4.0, 3.5))
    assert numbers(entrants(found, 1)) == [1, 2, 3]
    assert numbers(entrants(searched(trial(1, 9.0), trial(2, 1.0), trial(3, 2.0), trial(4, 3.0)), 1)) == [1, 2]


def test_of_those_trained_to_the_end_the_lowest_loss_is_first() -> None:
    found = searched(trial(1, 2.0, 1.5), trial(2, 1.0, 1.6), trial(3, 3.0))
    assert numbers(finalists(found)) == [1, 2]
    equal = searched(trial(1, 2.0, 1.5), trial(2, 1.0, 1.5), trial(3, 3.0))
    assert numbers(finalists(equal)) == [1, 2]


def test_a_failed_recipe_is_dropped_even_if_it_is_the_automatic_one() -> None:
    found = searched(trial(1, failure="the training loss is nan"), trial(2, 1.0, 0.9), trial(3, 2.0, 1.9), trial(4, 3.0))
    assert numbers(entrants(found, 1)) == [2, 3]
    late = searched(trial(1, 2.0, failure="the held-out loss is nan"), trial(2, 1.0, 0.9), trial(3, 3.0))
    assert numbers(finalists(late)) == [2]


def test_exact_match_counts_first_and_the_loss_decides_between_equals() -> None:
    trials = (trial(1, 1.0, score=0.5), trial(2, 2.0, score=0.75), trial(3, 1.5, score=0.5), trial(4, 0.5, score=0.25))
    assert numbers(entrants(searched(*trials, metric=EXACT_MATCH), 1)) == [1, 2]
    two = (trial(1, 1.0, score=0.5), trial(2, 0.5, score=0.5))
    assert numbers(finalists(searched(*two, metric=EXACT_MATCH))) == [2, 1]
