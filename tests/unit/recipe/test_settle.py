"""What is chosen for settings that are left to the recipe, and how it adapts to those that are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.recipe.facts import Facts
from llmft_cli.recipe.settle import in_words, settle
from llmft_cli.settings.config import FIELDS, resolve

from ..settled import FACTS, settled

AUTO = [name for name, item in FIELDS.items() if item.setting.auto]


def facts(rows: int, tokens_per_row: float, supervised_per_row: float, hidden_size: int = 576) -> Facts:
    tokens = round(rows * tokens_per_row)
    return Facts(hidden_size, rows, tokens, round(rows * supervised_per_row), 3 * round(tokens_per_row), 50, 5000)


@pytest.mark.parametrize(
    ("known", "rows_per_step", "num_epochs", "learning_rate"),
    [
        # Sets on which the best of a grid was measured (docs/recipe.md): short answers,
        (facts(90, 44, 3.3), 8, 3, 2.2e-3),
        (facts(350, 44, 3.3), 8, 5, 2.1e-3),
        (facts(358, 61, 18.6), 8, 5, 2.1e-3),
        (facts(950, 44, 3.3), 8, 4, 1.6e-3),
        (facts(14_700, 44, 3.3), 32, 3, 1.0e-3),
        # and longer ones.
        (facts(90, 96, 29), 8, 3, 2.2e-3),
        (facts(350, 96, 29), 16, 3, 2.2e-3),
        (facts(945, 96, 29), 32, 3, 2.2e-3),
        (facts(936, 200, 150), 32, 3, 2.2e-3),
        (facts(4_222, 96, 29), 32, 3, 1.7e-3),
        (facts(7_172, 217, 126), 32, 3, 1.4e-3),
        # A 7B model has a lower rate; long rows, and many rows, are not gone through as often.
        (facts(10_000, 300, 200, hidden_size=4096), 32, 3, 2.6e-4),
        (facts(10_000, 2048, 2048, hidden_size=4096), 16, 3, 1.9e-4),
        (facts(1_000_000, 300, 200, hidden_size=4096), 32, 1, 1.4e-4),
        # A few rows: enough steps to learn anything.
        (facts(12, 50, 20), 8, 10, 2.2e-3),
        (facts(1, 50, 20), 1, 10, 2.2e-3),
    ],
)
def test_the_recipe_of_rows_and_model(known: Facts, rows_per_step: int, num_epochs: int, learning_rate: float) -> None:
    config = settled({}, known)
    assert (config.rows_per_step, config.num_epochs, config.learning_rate) == (rows_per_step, num_epochs, learning_rate)
    assert config.batch_size is None


@given(st.integers(1, 10**7), st.floats(2, 4096), st.floats(0.001, 1), st.integers(16, 16384), st.sampled_from([0, 1, 50]))
def test_any_rows_and_any_model_get_a_recipe(
    rows: int, tokens_per_row: float, supervised: float, hidden_size: int, held_out: int
) -> None:
    known = replace(facts(rows, tokens_per_row, max(1.0, supervised * tokens_per_row), hidden_size), held_out_rows=held_out)
    config, recipe = settle(resolve({}), known)
    assert sorted(recipe) == sorted(AUTO)
    for name in AUTO:
        assert FIELDS[name].setting.complaint(getattr(config, name)) == ""
        assert getattr(config, name) == recipe[name].value
    assert config.rows_per_step <= rows
    assert 1e-5 < config.learning_rate < 0.1
    assert (config.early_stopping_patience == 0) or held_out
    assert len(in_words(recipe)) == len(AUTO)


def test_each_choice_is_told_as_the_flag_that_sets_it() -> None:
    _, recipe = settle(resolve({}), facts(350, 44, 3.3))
    assert in_words(recipe) == [
        "recipe: --rows-per-step 8 (for 1,155 tokens to learn in 350 rows)",
        "recipe: --num-epochs 5 (little to learn; 220 steps)",
        "recipe: --learning-rate 0.0021 (for a model of width 576 and 220 steps)",
        "recipe: --warmup-ratio 0.05 (of the steps)",
        "recipe: --eval-steps 0.166667 (6 evaluations; the best adapter is kept)",
        "recipe: --early-stopping-patience 3 (evaluations without a lower held-out loss end the training)",
    ]


@pytest.mark.parametrize("name", AUTO)
def test_what_is_given_stays(name: str) -> None:
    given_value = {"learning_rate": 5e-5, "num_epochs": 7.0, "rows_per_step": 3, "warmup_ratio": 0.5, "eval_steps": 11.0}
    value: Any = given_value.get(name, 9)
    config, recipe = settle(resolve({name: value}), FACTS)
    assert getattr(config, name) == value
    assert sorted(recipe) == sorted(set(AUTO) - {name})
    assert settle(config, FACTS) == (config, {})


def test_the_rest_adapts_to_what_is_given() -> None:
    """Fewer steps take a higher rate, and more epochs are watched."""
    many = settled({"num_epochs": 30})
    few = settled({"max_steps": 20})
    assert (many.learning_rate, settled({}).learning_rate, few.learning_rate) == (1.2e-3, 2.2e-3, 2.2e-3)
    assert (many.eval_steps, many.early_stopping_patience) == (0.1, 3)
    assert few.num_epochs is None


@pytest.mark.parametrize(
    ("flags", "batch_size", "passes"),
    [
        ({"batch_size": 2}, 2, 4),
        ({"gradient_accumulation_steps": 2}, 4, 2),
        ({"batch_size": 3, "gradient_accumulation_steps": 5}, 3, 5),
        ({"tokens_per_batch": 4096}, None, 4),
    ],
)
def test_where_sequences_are_counted_rows_are_not(flags: dict[str, int], batch_size: int | None, passes: int) -> None:
    config, recipe = settle(resolve(flags), FACTS)
    assert (config.batch_size, config.gradient_accumulation_steps, config.rows_per_step) == (batch_size, passes, None)
    assert "rows_per_step" not in recipe


def test_without_held_out_rows_nothing_stops_early() -> None:
    config, recipe = settle(resolve({}), replace(facts(90, 44, 3.3), held_out_rows=0, held_out_tokens=0))
    assert config.early_stopping_patience == 0
    assert recipe["eval_steps"].reason == "6 checkpoints; no rows are held out"
