"""The recipes to compare: the automatic one, and others around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.recipe.choices import Choice
from llmft_cli.recipe.facts import Facts
from llmft_cli.recipe.settle import Recipe, settle
from llmft_cli.settings.config import Config

# What differs between the recipes, unless the user sets it; the rest of each recipe adapts to it.
VARIED = ("learning_rate", "rows_per_step", "num_epochs")
RATE_FACTOR = 3.0  # at most so many times the rate that the automatic recipe has for these steps, or a part of it
EPOCHS_FACTOR = 2.0
ROWS_FACTORS = (0.5, 1, 2, 4)
DRAWN = "drawn around the automatic value"
# Where few recipes differ, because most of it is set, more draws would find no other.
DRAWS_PER_CANDIDATE = 16


@dataclass(frozen=True)
class Candidate:
    """A recipe to try: the settings without `auto`, and what was chosen for those that were."""

    config: Config
    recipe: Recipe

    @property
    def varied(self) -> dict[str, Any]:
        return {name: choice.value for name, choice in self.recipe.items() if name in VARIED}


def propose(config: Config, facts: Facts, count: int) -> list[Candidate]:
    """The automatic recipe, and others that are spread evenly around it; fewer than `count` if not so many differ.

    They depend on the settings, their seed and the facts alone.

    Raises:
        ConfigError: everything that a search varies is set.
    """
    from scipy.stats import qmc

    automatic = Candidate(*settle(config, facts))
    if not automatic.varied:
        raise ConfigError(
            "--search has nothing to vary: learning rate, size of a step and length of the training are all set",
            "omit one of --learning-rate, --rows-per-step and --num-epochs",
        )
    found = {tuple(automatic.varied.values()): automatic}
    for point in qmc.Halton(d=len(VARIED), rng=config.seed).random(DRAWS_PER_CANDIDATE * count).tolist():
        candidate = around(automatic, config, facts, point)
        found.setdefault(tuple(candidate.varied.values()), candidate)
        if len(found) == count:
            break
    return list(found.values())


def around(automatic: Candidate, config: Config, facts: Facts, point: Sequence[float]) -> Candidate:
    """The recipe at a point of the unit cube around the automatic one, which is not at its centre.

    Args:
        config: the settings as given.
    """
    for_rate, for_rows, for_epochs = point
    values: dict[str, Any] = {}
    if "rows_per_step" in automatic.recipe:
        rows = automatic.config.rows_per_step * ROWS_FACTORS[int(for_rows * len(ROWS_FACTORS))]
        values["rows_per_step"] = min(max(1, round(rows)), facts.rows)
    if "num_epochs" in automatic.recipe:
        epochs = automatic.config.num_epochs * EPOCHS_FACTOR ** (2 * for_epochs - 1)
        values["num_epochs"] = float(max(1, round(epochs)))
    if "learning_rate" in automatic.recipe:
        usual = settle(replace(config, **values), facts)[0].learning_rate
        values["learning_rate"] = float(f"{usual * RATE_FACTOR ** (2 * for_rate - 1):.1e}")
    settled, others = settle(replace(config, **values), facts)
    chosen = {name: Choice(value, DRAWN) for name, value in values.items()}
    return Candidate(settled, {name: {**others, **chosen}[name] for name in automatic.recipe})
