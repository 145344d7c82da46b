"""Loss curves of the same training with llmft's fast and plain layers, with PEFT's own modules, and in fp32.

    python benchmarks/loss_curves.py rows.json --out curves.json --chart curves.svg [--model M] [--steps 200] [--at-once 9]

The data is any file that `llmft prepare` reads; seed and batches are the same. The fast layers are compared with two kinds
of noise: plain layers again, because a GPU adds some sums in a different order each time (a CPU does not), and plain layers
with each batch in two passes, which differs only by rounding. If layers differ by more than noise, the training in fp32 with
the same NF4 weights shows which is right. On a GPU, there are also fast layers in fp16, with loss scaling. One training has
adapters in 16 bits instead of fp32, to show what that costs.
OUT is written after each training; trainings that it already contains with the same settings are skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llmft_cli.base.libraries import configure_libraries, hardware, versions

configure_libraries()


from llmft_cli.base.reporter import Silent  # noqa: E402
from llmft_cli.data.prepare import prepare  # noqa: E402
from llmft_cli.models import adapters  # noqa: E402
from llmft_cli.run_dir.run import RunDir  # noqa: E402
from llmft_cli.settings.config import resolve  # noqa: E402
from llmft_cli.training.loop.loss_chart import read_metrics  # noqa: E402
from llmft_cli.training.step import tuned_model  # noqa: E402
from llmft_cli.training.train import train  # noqa: E402


@dataclass(frozen=True)
class Training:
    """How a training differs from the others.

    Attributes:
        passes: number of passes per batch.
        own_modules: use PEFT's forward under autocast, as for DoRA, instead of `LoraProduct`.
        adapters_in_16_bits: adapters and optimizer state in 16 bits.
    """

    fast: bool = False
    passes: int = 1
    compute_dtype: str = "bf16"
    own_modules: bool = False
    adapters_in_16_bits: bool = False


PLAIN, FAST, FP16, EXACT = "plain layers", "fast layers", "fast layers in fp16", "plain layers in fp32"
TRAININGS = {
    PLAIN: Training(),
    f"{PLAIN}, again": Training(),
    f"{PLAIN}, a third time": Training(),
    f"{PLAIN}, in two passes": Training(passes=2),
    FAST: Training(fast=True),
    f"{FAST}, again": Training(fast=True),
    FP16: Training(fast=True, compute_dtype="fp16"),
    f"{FAST}, adapters in 16 bits": Training(fast=True, adapters_in_16_bits=True),
    EXACT: Training(compute_dtype="fp32"),
    "PEFT's own layers": Training(own_modules=True),
}
# Trainings that differ only by rounding, and those that are compared with them.
SAME = (PLAIN, f"{PLAIN}, again", f"{PLAIN}, a third time", f"{PLAIN}, in two passes")
COMPARED = (FAST, f"{FAST}, again")
GPU_ONLY = (FP16,)
COLOURS = ("#444444", "#dd8452", "#e2a76f", "#c8b62f", "#4c72b0", "#7fa5d8", "#1b9e9e", "#8172b3", "#55a868", "#c44e52")


@dataclass(frozen=True)
class Curve:
    """Loss of each step and of the held-out rows in the end, in nats per supervised token."""

    losses: list[float]
    held_out: float


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "max_seq_length", "chat_template")
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def trained(arguments: argparse.Namespace, name: str) -> Curve:
    """The training of this name, in a run of its own."""
    given = given_settings(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        prepare(run, [str(arguments.data)], resolve(given | {"on_overlength": "drop"}), Silent())
        return trained_in(run, arguments, TRAININGS[name])


def trained_in(run: RunDir, arguments: argparse.Namespace, training: Training) -> Curve:
    settings = {
        "max_steps": arguments.steps,
        "logging_steps": 1,
        "eval_steps": float(arguments.steps),
        "batch_size": arguments.batch_size // training.passes,
        "gradient_accumulation_steps": training.passes,
        "plan": "given",
        "fast": training.fast,
        "compute_dtype": training.compute_dtype,
    }
    with as_told(training):
        result = train(run, resolve(settings, saved=run.saved_settings("prepare")), Silent(), overwrite=True)
    assert result.eval_loss is not None, "no rows are held out"
    return Curve([row["loss"] for row in read_metrics(run.metrics) if "loss" in row], result.eval_loss)


@contextmanager
def as_told(training: Training) -> Iterator[None]:
    """The library takes its own product."""
    with ExitStack() as patches:
        if training.own_modules:
            patches.enter_context(patch.object(tuned_model, "computes_in_base_type", lambda config: False))
        if training.adapters_in_16_bits:
            patches.enter_context(patch.object(tuned_model, "add_adapter", add_adapter_in_16_bits))
        yield


def add_adapter_in_16_bits(*arguments: Any) -> Any:
    model = adapters.add_adapter(*arguments)
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data = weights.data.bfloat16()
    return model


def earlier_curves(path: Path, record: dict[str, Any]) -> dict[str, Curve]:
    """Of a file that the same command on the same machine has written."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if {name: earlier.get(name) for name in record} != json.loads(json.dumps(record)):
        return {}
    return {name: Curve(losses, earlier["held_out"][name]) for name, losses in earlier["losses"].items()}


def new_curves(arguments: argparse.Namespace, names: Sequence[str]) -> Iterator[tuple[str, Curve]]:
    """One after the other, or several in processes of their own."""
    if arguments.at_once == 1:
        for name in names:
            yield name, trained(arguments, name)
        return
    with ProcessPoolExecutor(arguments.at_once, multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(trained, arguments, name): name for name in names}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def distances_from(reference: str, curves: dict[str, Curve]) -> dict[str, dict[str, float]]:
    exact = curves[reference].losses
    return {name: distances(curve.losses, exact) for name, curve in curves.items() if name != reference}


def noise(curves: dict[str, Curve]) -> dict[str, dict[str, float]]:
    """Mean distances of the trainings that differ only by rounding, of the fast ones, and of that in fp16."""
    same = [curves[name].losses for name in SAME if name in curves]
    fast = [curves[name].losses for name in COMPARED if name in curves]
    half = [curves[name].losses for name in GPU_ONLY if name in curves]
    pairs = {
        "plain from plain": itertools.combinations(same, 2),
        "fast from plain": itertools.product(fast, same),
        "fast from fast": itertools.combinations(fast, 2),
        "fast in fp16 from fast": itertools.product(half, fast),
        "fast in fp16 from plain": itertools.product(half, same),
    }
    found: dict[str, dict[str, float]] = {}
    for name, those in pairs.items():
        means = [distances(one, other)["mean"] for one, other in those]
        if means:
            found[name] = {"least": min(means), "mean": statistics.fmean(means), "most": max(means)}
    return found


def distances(losses: list[float], reference: list[float]) -> dict[str, float]:
    """Of every step, and of the means of the last quarter."""
    differences = [abs(one - other) for one, other in zip(losses, reference, strict=True)]
    last = max(1, len(losses) // 4)
    return {
        "mean": sum(differences) / len(differences),
        "largest": max(differences),
        "last_quarter": abs(sum(losses[-last:]) - sum(reference[-last:])) / last,
    }


def draw(curves: dict[str, Curve], chart: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "llmft", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(8, 6), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for name, colour in zip(TRAININGS, COLOURS, strict=True):
            if name not in curves:
                continue
            losses = curves[name].losses
            upper.plot(range(1, len(losses) + 1), losses, color=colour, linewidth=1, label=name)
            if name != PLAIN:
                beside = [one - other for one, other in zip(losses, curves[PLAIN].losses, strict=True)]
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
    parser.add_argument("--at-once", type=int, default=1, help="number of trainings in parallel processes")
    parser.add_argument("--only", action="append", choices=TRAININGS, help="run only this training (repeatable)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chart", type=Path, required=True)
    arguments = parser.parse_args()
    settings = given_settings(arguments)
    described = settings | {"model": Path(settings["model"]).name, "steps": arguments.steps}
    described |= {"batch_size": arguments.batch_size, "data": arguments.data.name}
    record: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "hardware": hardware(),
        "versions": versions(),
        "settings": described,
    }
    curves = earlier_curves(arguments.out, record)
    missing = [name for name in arguments.only or TRAININGS if name not in curves]
    for name, curve in new_curves(arguments, [name for name in missing if name not in GPU_ONLY or on_gpu()]):
        curves[name] = curve
        print(f"{name}: {curve.losses[0]:.4f} to {curve.losses[-1]:.4f}, held out {curve.held_out:.4f}", flush=True)
        arguments.out.write_text(json.dumps(record | figures(curves), indent=2) + "\n")
    found = figures(curves)
    for reference, others in found["distances"].items():
        for name, one in others.items():
            print(f"{name}: {one['mean']:.2e} from {reference} in the mean, {one['largest']:.2e} at most")
    for name, one in found["noise"].items():
        print(f"{name}: {one['least']:.2e} to {one['most']:.2e}, {one['mean']:.2e} in the mean")
    draw(curves, arguments.chart)


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def figures(curves: dict[str, Curve]) -> dict[str, Any]:
    return {
        "distances": {reference: distances_from(reference, curves) for reference in (PLAIN, EXACT) if reference in curves},
        "noise": noise(curves),
        "held_out": {name: curve.held_out for name, curve in curves.items()},
        "losses": {name: curve.losses for name, curve in curves.items()},
    }


if __name__ == "__main__":
    main()
