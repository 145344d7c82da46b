"""Trains a grid of learning rates and rows per step on a run's rows, and the automatic recipe beside it.

    llmft prepare rows.jsonl --run runs/grid --model smollm2-135m
    python benchmarks/recipe_grid.py runs/grid --out grid.json

Everything is trained by `llmft train`'s own stage, on one model that is loaded once. A training of the grid is evaluated
after each epoch, and its best epoch counts; the recipe's result is that of the adapter it keeps. All have the same held-out
rows. Times to the evaluation that counts are the share of its steps of the training's time, evaluations and saves included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmft_cli.base.libraries import configure_libraries, hardware, import_training_libraries, versions

configure_libraries()

from llmft_cli.base.reporter import Silent  # noqa: E402
from llmft_cli.base.stage_times import StageTimes  # noqa: E402
from llmft_cli.models import model_source  # noqa: E402
from llmft_cli.models.model_source import ModelSource  # noqa: E402
from llmft_cli.recipe.settle import settle  # noqa: E402
from llmft_cli.run_dir.run import RunDir  # noqa: E402
from llmft_cli.run_dir.training_files import TrainingFiles  # noqa: E402
from llmft_cli.search.shared_model import SharedModel, load_shared  # noqa: E402
from llmft_cli.settings.config import Config, resolve  # noqa: E402
from llmft_cli.training.judgement.result import kept_eval_loss  # noqa: E402
from llmft_cli.training.planning.planned import Planned, planned  # noqa: E402
from llmft_cli.training.planning.recipe import facts_of_training  # noqa: E402
from llmft_cli.training.resume import new_identity  # noqa: E402
from llmft_cli.training.train import run_training, settle_device, trainer_of  # noqa: E402

RECIPE = "recipe"


def configs(run: RunDir, source: ModelSource, arguments: argparse.Namespace, base: Config) -> dict[str, Config]:
    """The settings of each training by name, the recipe's first."""
    facts = facts_of_training(source, base, run)
    grid = {}
    for rate, rows in itertools.product(arguments.learning_rates, arguments.rows_per_step):
        given = replace(base, learning_rate=rate, rows_per_step=min(rows, facts.rows), num_epochs=float(arguments.num_epochs))
        grid[f"{rate:g} x {rows}"] = replace(given, eval_steps=1 / arguments.num_epochs, early_stopping_patience=0)
    return {name: settle(config, facts)[0] for name, config in {RECIPE: base, **grid}.items()}


def trained(run: RunDir, source: ModelSource, shared: SharedModel, plan: Planned) -> dict[str, Any]:
    """Losses and seconds of a training from the seeded adapter to the last step."""
    shared.make_ready(plan.chosen.plan)
    with tempfile.TemporaryDirectory() as folder:
        files = TrainingFiles(Path(folder))
        identity = new_identity(plan.config, {}, source)
        trainer = trainer_of(run, files, shared.model, plan, identity, StageTimes("steps"), Silent())
        outcome = run_training(trainer, run, files, plan.config, None, Silent())
        evaluations = [row for row in trainer.state.log_history if "eval_loss" in row and row["step"]]
        kept, steps = kept_eval_loss(trainer), trainer.state.global_step
        best = min(evaluations, key=lambda row: row["eval_loss"])["step"]
    return {
        "learning_rate": plan.config.learning_rate,
        "rows_per_step": plan.config.rows_per_step,
        "num_epochs": plan.config.num_epochs,
        "steps": steps,
        "eval_loss": kept,
        "best_step": best,
        "seconds_to_best": outcome.seconds * best / steps,
        "eval_losses": [row["eval_loss"] for row in evaluations],
    }


def compared(trainings: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The recipe beside the best point, and beside the quickest one within 2% of the best."""
    grid = [one for name, one in trainings.items() if name != RECIPE]
    best = min(one["eval_loss"] for one in grid)
    quickest = min(one["seconds_to_best"] for one in grid if one["eval_loss"] <= 1.02 * best)
    recipe = trainings[RECIPE]
    return {
        "best_eval_loss": best,
        "loss_ratio": recipe["eval_loss"] / best,
        "time_ratio": recipe["seconds_to_best"] / quickest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3])
    parser.add_argument("--rows-per-step", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--num-epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    import_training_libraries()
    run = RunDir(arguments.run)
    given = {"seed": arguments.seed, "quantization": arguments.quantization}
    device, base = settle_device(resolve(given, saved=run.saved_settings("prepare")), None, Silent())
    source = model_source.resolve(base.model, Silent())
    plans = {name: planned(run, source, one, device, Silent()) for name, one in configs(run, source, arguments, base).items()}
    shared = load_shared(source, plans[RECIPE].config, [plan.chosen.plan for plan in plans.values()], device, Silent())
    trainings = {}
    for name, plan in plans.items():
        trainings[name] = trained(run, source, shared, plan)
        print(f"{name}: {trainings[name]['eval_loss']:.4f} after step {trainings[name]['best_step']}", flush=True)
    found = compared(trainings)
    record = {"what": __doc__.splitlines()[0], "hardware": hardware(), "versions": versions(), "settings": given}
    arguments.out.write_text(json.dumps({**record, "trainings": trainings, "compared": found}, indent=1), encoding="utf-8")
    print(f"recipe: loss {found['loss_ratio']:.3f} x the best, time {found['time_ratio']:.2f} x the quickest of the good ones")


if __name__ == "__main__":
    main()
