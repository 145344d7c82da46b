"""The table of a search."""

from __future__ import annotations

from llmft_cli.cli.views.search import search


def recipe(number: int, outcome: str, loss: float | None, score: float | None = None) -> dict:
    settings = {"learning_rate": 0.0012 * number, "num_epochs": 3, "warmup_ratio": 0.05}
    figures = {"steps_done": 1000 * number, "steps": 4000, "eval_loss": loss, "exact_match": score}
    return {"number": number, "settings": settings, **figures, "kept": number == 2, "outcome": outcome}


def test_settings_that_differ_and_figures() -> None:
    found = [recipe(2, "kept", 1.23456), recipe(1, "trained to the end", 1.3), recipe(3, "the training loss is nan", None)]
    (section,) = search({"metric": "eval_loss", "recipes": found})
    assert section.title == "Search: 3 recipes, the best first"
    assert section.header == ("recipe", "learning rate", "epochs", "steps", "held-out loss", "")
    assert section.rows == [
        ("2", "0.0024", "3", "2,000 of 4,000", "1.2346", "kept"),
        ("1 (automatic)", "0.0012", "3", "1,000 of 4,000", "1.3000", "trained to the end"),
        ("3", "0.0036", "3", "3,000 of 4,000", "-", "the training loss is nan"),
    ]


def test_exact_match_has_a_column_where_it_was_measured() -> None:
    (section,) = search({"metric": "exact_match", "recipes": [recipe(1, "kept", 1.0, 0.625)]})
    assert section.header[-2:] == ("exact match", "")
    assert section.rows[0][-2:] == ("62.5%", "kept")


def test_without_a_search_there_is_none() -> None:
    assert search(None) == []
