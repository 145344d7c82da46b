"""Losses of the same training by llmft's fast and plain layers, by PEFT's own modules, and in fp32.

    python benchmarks/loss_curves.py rows.json --out curves.json --chart curves.svg [--model M] [--steps 200]

The data is any file that `llmft prepare` reads, the seed and so the batches are the same. Two kinds of noise are there to hold
the fast layers against: plain layers again, as a GPU adds some sums up in another order each time (a CPU does not), and plain
layers with each batch in two passes, which is the same training in exact arithmetic, so that what it differs by is rounding.
Which of two layers that differ by more than noise is right says the training in fp32, of the same NF4 weights.
OUT is written after each training; those that it has already of the same settings are not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llmft_cli.libraries import calm, hardware, versions

calm()

import torch  # noqa: E402

from llmft_cli import models  # noqa: E402
from llmft_cli.config import resolve  # noqa: E402
from llmft_cli.data.prepare import prepare  # noqa: E402
from llmft_cli.progress import Silent  # noqa: E402
from llmft_cli.run_dir import RunDir  # noqa: E402
from llmft_cli.training import attention, schedule, tuned_model  # noqa: E402
from llmft_cli.training.loss_chart import read_metrics  # noqa: E402
from llmft_cli.training.train import train  # noqa: E402


@dataclass(frozen=True)
class Training:
    """How a training differs from the others.

    Attributes:
        passes: into how many a batch is divided.
        own_modules: PEFT's forward under autocast, as DoRA has it, instead of `LoraProduct`.
    """

    fast: bool = False
    passes: int = 1
    in_fp32: bool = False
    own_modules: bool = False


PLAIN, EXACT = "plain layers", "plain layers in fp32"
TRAININGS = {
    PLAIN: Training(),
    f"{PLAIN}, again": Training(),
    f"{PLAIN}, in two passes": Training(passes=2),
    "fast layers": Training(fast=True),
    EXACT: Training(in_fp32=True),
    "PEFT's own layers": Training(own_modules=True),
}
COLOURS = ("#444444", "#dd8452", "#c8b62f", "#4c72b0", "#55a868", "#c44e52")


def trained_losses(run: RunDir, arguments: argparse.Namespace, training: Training) -> list[float]:
    """Loss of each step, in nats per supervised token."""
    settings = {
        "max_steps": arguments.steps,
        "logging_steps": 1,
        "eval_steps": float(arguments.steps),
        "batch_size": arguments.batch_size // training.passes,
        "gradient_accumulation_steps": training.passes,
        "plan": "given",
        "fast": training.fast,
    }
    with as_told(training):
        train(run, resolve(settings, saved=run.saved_settings("prepare")), Silent(), overwrite=True)
    return [row["loss"] for row in read_metrics(run.metrics) if "loss" in row]


@contextmanager
def as_told(training: Training) -> Iterator[None]:
    """The library takes the type that is right for the device, and FlashAttention, which knows no fp32; and its own product."""
    with ExitStack() as patches:
        if training.in_fp32:
            for module in (models, schedule):
                patches.enter_context(patch.object(module, "compute_dtype", lambda device: torch.float32))
            patches.enter_context(patch.object(attention, "has_flash", lambda device: False))
        if training.own_modules:
            patches.enter_context(patch.object(tuned_model, "computes_in_base_type", lambda config, dtype: False))
        yield


def earlier_curves(path: Path, record: dict[str, Any]) -> dict[str, list[float]]:
    """Of a file that the same command on the same machine has written."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    curves: dict[str, list[float]] = earlier.pop("losses", {})
    return curves if {name: earlier.get(name) for name in record} == json.loads(json.dumps(record)) else {}


def distances_from(reference: str, curves: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {name: distances(losses, curves[reference]) for name, losses in curves.items() if name != reference}


def distances(losses: list[float], reference: list[float]) -> dict[str, float]:
    """Of every step, and of the means of the last quarter."""
    differences = [abs(one - other) for one, other in zip(losses, reference, strict=True)]
    last = max(1, len(losses) // 4)
    return {
        "mean": sum(differences) / len(differences),
        "largest": max(differences),
        "last_quarter": abs(sum(losses[-last:]) - sum(reference[-last:])) / last,
    }


def draw(curves: dict[str, list[float]], chart: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "llmft", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(8, 6), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for (name, losses), colour in zip(curves.items(), COLOURS, strict=True):
            upper.plot(range(1, len(losses) + 1), losses, color=colour, linewidth=1, label=name)
            if name != PLAIN:
                beside = [one - other for one, other in zip(losses, curves[PLAIN], strict=True)]
                lower.plot(range(1, len(losses) + 1), beside, color=colour, linewidth=1)
        upper.set(ylabel="loss (nats per supervised token)", ylim=(0, None))
        lower.set(ylabel=f"less that of {PLAIN}", xlabel="optimizer step")
        for axes in (upper, lower):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        upper.legend(frameon=False)
        figure.savefig(chart, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--chat-template")
    parser.add_argument("--max-seq-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chart", type=Path, required=True)
    arguments = parser.parse_args()
    names = ("model", "max_seq_length", "chat_template")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    described = settings | {"model": Path(settings["model"]).name, "steps": arguments.steps}
    described |= {"batch_size": arguments.batch_size, "data": arguments.data.name}
    record: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "hardware": hardware(),
        "versions": versions(),
        "settings": described,
    }
    curves = earlier_curves(arguments.out, record)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        prepare(run, [str(arguments.data)], resolve(settings | {"on_overlength": "drop"}), Silent())
        for name, training in TRAININGS.items():
            if name not in curves:
                curves[name] = trained_losses(run, arguments, training)
            print(f"{name}: {curves[name][0]:.4f} to {curves[name][-1]:.4f}", flush=True)
            found = {reference: distances_from(reference, curves) for reference in (PLAIN, EXACT) if reference in curves}
            arguments.out.write_text(json.dumps(record | {"distances": found, "losses": curves}, indent=2) + "\n")
    for reference, others in found.items():
        for name, one in others.items():
            print(f"{name}: {one['mean']:.2e} from {reference} in the mean, {one['largest']:.2e} at most")
    draw(curves, arguments.chart)


if __name__ == "__main__":
    main()
