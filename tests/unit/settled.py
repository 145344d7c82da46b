"""Settings as they are once the recipe is settled."""

from __future__ import annotations

from typing import Any

from llmft_cli.recipe.facts import Facts
from llmft_cli.recipe.settle import settle
from llmft_cli.settings.config import Config, resolve

FACTS = Facts(
    hidden_size=576,
    rows=1000,
    tokens=100_000,
    supervised_tokens=50_000,
    longest_row_tokens=300,
    held_out_rows=50,
    held_out_tokens=5000,
)


def settled(flags: dict[str, Any], facts: Facts = FACTS) -> Config:
    return settle(resolve(flags), facts)[0]
