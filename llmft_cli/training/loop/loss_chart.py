"""loss.svg: training and held-out loss by step."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from llmft_cli.base.files import write_atomically


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without lines that a kill or a full disk has cut off."""
    if not file.exists():
        return []
    rows = (row_in(line) for line in file.read_text(encoding="utf-8", errors="replace").split("\n"))
    return [row for row in rows if row is not None]


def row_in(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def forget_steps_after(file: Path, step: int, evaluated: Container[int]) -> None:
    """Remove the rows after a step from metrics.jsonl, and evaluations of other steps than those."""
    rows = [row for row in read_metrics(file) if row["step"] <= step and ("eval_loss" not in row or row["step"] in evaluated)]
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def tokens_so_far(metrics: Path) -> int:
    """Tokens processed before resuming."""
    return max((row.get("tokens", 0) for row in read_metrics(metrics)), default=0)


def draw(metrics: Path, chart: Path) -> None:
    """Draw the chart from metrics.jsonl."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    training = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    # A fixed salt and no date: the same metrics give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "llmft", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*training, strict=True), color="#4c72b0", linewidth=1.2, label="training")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color="#c44e52", marker="o", markersize=4, label="held out")
        axes.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)", ylim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(chart, format="svg", metadata={"Date": None})
