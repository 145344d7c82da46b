"""Settles the settings that are `auto`: what the user gave stays, and the rest adapts to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmft_cli.recipe import choices
from llmft_cli.recipe.choices import Choice
from llmft_cli.recipe.facts import Facts
from llmft_cli.settings.config import Config, flag_of
from llmft_cli.settings.definitions import PASSES, SEQUENCES

Recipe = Mapping[str, Choice]


def counts_rows(config: Config) -> bool:
    """Whether a step is counted in rows, not in sequences or tokens; a plan may have set the others since."""
    given = config.batch_size, config.tokens_per_batch, config.gradient_accumulation_steps
    return config.rows_per_step is not None or all(value is None for value in given)


def settle(config: Config, facts: Facts) -> tuple[Config, Recipe]:
    """The settings without `auto`, and what was chosen for those that were.

    Where sequences are counted, `batch_size` and `gradient_accumulation_steps` get their defaults.
    """
    config = with_counts(config)
    recipe: dict[str, Choice] = {}

    def settled(name: str, choose: Callable[[], Choice]) -> Any:
        if getattr(config, name) is None:
            recipe[name] = choose()
            return recipe[name].value
        return getattr(config, name)

    if counts_rows(config):
        rows = settled("rows_per_step", lambda: choices.rows_per_step(facts))
    else:
        rows = rows_of_a_step(config, facts)
    per_epoch = math.ceil(facts.rows / rows)
    if config.max_steps is None:
        epochs = settled("num_epochs", lambda: choices.num_epochs(facts, per_epoch))
    else:
        epochs = config.max_steps / per_epoch
    settled("learning_rate", lambda: choices.learning_rate(facts, epochs * per_epoch))
    settled("warmup_ratio", choices.warmup_ratio)
    settled("eval_steps", lambda: choices.eval_steps(facts, epochs))
    settled("early_stopping_patience", lambda: choices.early_stopping_patience(facts, epochs))
    values: dict[str, Any] = {name: choice.value for name, choice in recipe.items()}
    return replace(config, **values), recipe


def with_counts(config: Config) -> Config:
    """The settings with the size of a step in sequences, if rows are not counted."""
    if counts_rows(config):
        return config
    passes = config.gradient_accumulation_steps or PASSES
    if config.tokens_per_batch is not None:
        return replace(config, gradient_accumulation_steps=passes)
    return replace(config, gradient_accumulation_steps=passes, batch_size=config.batch_size or SEQUENCES)


def rows_of_a_step(config: Config, facts: Facts) -> float:
    """Rows that a step learns from on average, where sequences or tokens are counted."""
    tokens = config.tokens_per_batch or config.batch_size * (config.max_seq_length if config.packing else 0)
    rows = tokens * facts.rows / facts.tokens if tokens else config.batch_size
    return rows * config.gradient_accumulation_steps


def in_words(recipe: Recipe) -> list[str]:
    """A line for each choice: the flag that would set it, with its value, and the reason."""
    return [f"recipe: {flag_of(name)} {choice.value:g} ({choice.reason})" for name, choice in recipe.items()]
