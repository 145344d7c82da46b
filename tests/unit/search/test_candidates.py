"""The recipes of a search: the automatic one first, and others around it."""

from __future__ import annotations

import pytest

from llmft_cli.base.errors import ConfigError
from llmft_cli.recipe.facts import Facts
from llmft_cli.recipe.settle import settle
from llmft_cli.search.candidates import VARIED, Candidate, propose
from llmft_cli.settings.config import resolve

FACTS = Facts(
    hidden_size=576,
    rows=950,
    tokens=41_800,
    supervised_tokens=9_000,
    longest_row_tokens=90,
    held_out_rows=50,
    held_out_tokens=2_200,
)


def proposed(count: int, **flags: object) -> list[Candidate]:
    return propose(resolve(flags), FACTS, count)


def varied(candidates: list[Candidate]) -> list[tuple[object, ...]]:
    return [tuple(getattr(candidate.config, name) for name in VARIED) for candidate in candidates]


def test_the_first_is_what_train_would_use() -> None:
    assert (proposed(8)[0].config, proposed(8)[0].recipe) == settle(resolve({}), FACTS)


def test_all_differ_and_are_around_the_automatic_one() -> None:
    candidates = proposed(32)
    automatic, *others = varied(candidates)
    assert automatic == (1.6e-3, 8, 4)
    assert len(set(varied(candidates))) == 32
    assert {rows for _, rows, _ in others} == {4, 8, 16, 32}
    assert {epochs for _, _, epochs in others} == {2, 3, 4, 5, 6, 7, 8}
    for candidate in candidates[1:]:
        # The rate is drawn around what suits a training of so many steps; the rest follows, too.
        config = candidate.config
        usual = settle(resolve({"rows_per_step": config.rows_per_step, "num_epochs": config.num_epochs}), FACTS)[0]
        assert usual.learning_rate / 3.1 < config.learning_rate < usual.learning_rate * 3.1
        assert (config.eval_steps, config.early_stopping_patience) == (usual.eval_steps, usual.early_stopping_patience)
        assert {name: choice.value for name, choice in candidate.recipe.items()} == {
            name: getattr(config, name) for name in candidates[0].recipe
        }


def test_rates_are_spread_evenly() -> None:
    """Halton's sequence leaves no third of the range empty, where eight random numbers do so every tenth time."""
    for seed in range(10):
        fixed = {"rows_per_step": 8, "num_epochs": 4.0, "seed": seed}
        ratios = [candidate.config.learning_rate / 1.6e-3 for candidate in proposed(9, **fixed)[1:]]
        thirds = [sum(low <= ratio < high for ratio in ratios) for low, high in ((0.3, 0.7), (0.7, 1.45), (1.45, 3.1))]
        assert min(thirds) >= 2
        assert sum(thirds) == 8


def test_they_depend_on_the_seed_alone() -> None:
    assert varied(proposed(8)) == varied(proposed(8))
    assert varied(proposed(8)) == varied(proposed(16))[:8]
    assert varied(proposed(8))[1:] != varied(proposed(8, seed=1))[1:]


def test_what_is_set_stays_set() -> None:
    candidates = proposed(8, learning_rate=1e-3, max_steps=50)
    assert {(candidate.config.learning_rate, candidate.config.max_steps) for candidate in candidates} == {(1e-3, 50)}
    assert sorted(candidate.config.rows_per_step for candidate in candidates) == [4, 8, 16, 32]  # no more of them differ
    assert "learning_rate" not in candidates[1].recipe


def test_a_step_has_a_row_at_least_and_all_rows_at_most() -> None:
    few = Facts(576, 3, 150, 30, 60, 1, 20)
    rows = {candidate.config.rows_per_step for candidate in propose(resolve({}), few, 16)}
    assert rows <= {1, 2, 3}


def test_with_everything_set_there_is_nothing_to_vary() -> None:
    with pytest.raises(ConfigError, match="nothing to vary") as raised:
        proposed(4, learning_rate=1e-3, batch_size=4, num_epochs=2.0)
    assert raised.value.hint == "omit one of --learning-rate, --rows-per-step and --num-epochs"
