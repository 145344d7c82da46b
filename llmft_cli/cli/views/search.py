"""The recipes of a search, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmft_cli.cli.views.sections import Section

COLUMNS = {"learning_rate": "learning rate", "rows_per_step": "rows per step", "num_epochs": "epochs"}
FIGURES = {"eval_loss": ("held-out loss", "{:.4f}"), "exact_match": ("exact match", "{:.1%}")}
NO_FIGURE = "-"


def search(found: Mapping[str, Any] | None) -> list[Section]:
    """All recipes of a search, the best first; nothing without one."""
    if found is None:
        return []
    recipes = found["recipes"]
    settings = {name: label for name, label in COLUMNS.items() if any(name in recipe["settings"] for recipe in recipes)}
    figures = {name: FIGURES[name] for name in FIGURES if any(recipe[name] is not None for recipe in recipes)}
    rows = [
        (
            f"{recipe['number']} (automatic)" if recipe["number"] == 1 else str(recipe["number"]),
            *(f"{recipe['settings'][name]:g}" for name in settings),
            f"{recipe['steps_done']:,} of {recipe['steps']:,}",
            *(NO_FIGURE if recipe[name] is None else form.format(recipe[name]) for name, (_, form) in figures.items()),
            recipe["outcome"],
        )
        for recipe in recipes
    ]
    header = ("recipe", *settings.values(), "steps", *(label for label, _ in figures.values()), "")
    return [Section(f"Search: {len(recipes)} recipes, the best first", rows, header)]
