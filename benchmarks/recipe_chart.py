"""Draws the trainings that the recipe was fitted to, and where the recipe lies among them.

    python benchmarks/recipe_chart.py benchmarks/results/recipe-smollm2-h200.json benchmarks/results/recipe-smollm2-h200.svg

Needs matplotlib. For each set of rows: the held-out loss of the best epoch by learning rate and rows per step, the mean of
its seeds; and that of `llmft train` without a flag, where it was measured (`recipe`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from llmft_cli.recipe.facts import Facts
from llmft_cli.recipe.settle import settle
from llmft_cli.settings.config import Config, resolve

HIDDEN_SIZE = 576  # of SmolLM2-135M
COLUMNS = 3


def recipe_for(rows: dict[str, Any]) -> Config:
    count, tokens = rows["rows"], round(rows["rows"] * rows["tokens_per_row"])
    supervised = round(count * rows["supervised_tokens_per_row"])
    return settle(resolve({}), Facts(HIDDEN_SIZE, count, tokens, supervised, tokens, 50, 5000))[0]


def draw_set(axes: Any, name: str, rows: dict[str, Any]) -> None:
    ordinary = [one for one in rows["trainings"] if one["lora_r"] == 16 and one["lr_scheduler"] == "cosine"]
    kinds = sorted({(one["asked_rows_per_step"], one["num_epochs"]) for one in ordinary})
    for rows_per_step, epochs in kinds:
        chosen = [one for one in ordinary if (one["asked_rows_per_step"], one["num_epochs"]) == (rows_per_step, epochs)]
        rates = sorted({one["learning_rate"] for one in chosen})
        losses = [mean(min(one["eval_loss_by_epoch"]) for one in chosen if one["learning_rate"] == rate) for rate in rates]
        axes.plot(rates, losses, marker="o", label=f"{rows_per_step} rows per step, {epochs} epochs")
    config = recipe_for(rows)
    label = f"recipe: {config.rows_per_step} rows, {config.num_epochs} epochs"
    axes.axvline(config.learning_rate, linestyle=":", color="black", label=label)
    for measured in rows.get("recipe", []):
        axes.plot(measured["learning_rate"], measured["eval_loss"], marker="*", markersize=12, color="black")
    axes.set(title=name, xscale="log", yscale="log", xlabel="learning rate")
    axes.legend(fontsize=7)


def draw(sets: dict[str, dict[str, Any]], chart: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "llmft", "svg.fonttype": "none", "font.size": 9}):
        lines = -(-len(sets) // COLUMNS)
        figure = Figure(figsize=(4.2 * COLUMNS, 3.6 * lines), layout="constrained")
        axes = figure.subplots(lines, COLUMNS)
        for place, (name, rows) in zip(axes.flat, sets.items(), strict=True):
            draw_set(place, name, rows)
        axes.flat[0].set_ylabel("held-out loss of the best epoch")
        figure.savefig(chart, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("chart", type=Path)
    arguments = parser.parse_args()
    draw(json.loads(arguments.results.read_text(encoding="utf-8"))["sets"], arguments.chart)


if __name__ == "__main__":
    main()
