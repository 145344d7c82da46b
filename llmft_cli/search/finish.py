"""The end of a search: the best trial becomes the training of the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from llmft_cli.base.errors import VerificationError
from llmft_cli.base.files import write_atomically
from llmft_cli.run_dir.stages import StageRecord
from llmft_cli.search.candidates import VARIED
from llmft_cli.search.halving import finalists
from llmft_cli.search.trial_training import Bench
from llmft_cli.search.trials import Search, Trial
from llmft_cli.settings.config import Config
from llmft_cli.training.judgement.result import TrainResult, result_of
from llmft_cli.training.loop.run_files import complete_checkpoints, save
from llmft_cli.training.planning.recipe import record_recipe
from llmft_cli.training.resume import checkpoint_to_resume
from llmft_cli.training.train import run_training, trainer_of


def finish(bench: Bench, record: StageRecord, config: Config) -> TrainResult:
    """Keep the adapter, the checkpoints and the figures of the best trial as those of the run.

    Args:
        config: the settings without those of a plan.

    Raises:
        VerificationError: no trial was trained to its end, or the best adapter changes nothing.
    """
    search, run = bench.search, record.run
    order = finalists(search)
    if not order:
        reason = next(trial.failure for trial in search.trials.values() if trial.failure)
        raise VerificationError(
            f"none of the recipes could be trained: {reason}", "start over with a lower --learning-rate and --overwrite"
        )
    best = order[0]
    planned, files = bench.plans[best.number], run.training_files
    move_files(search, best)
    reasons = {name: f"the best of {len(search.trials)} in a search" for name in VARIED}
    recipe = {name: choice._replace(reason=reasons.get(name, choice.reason)) for name, choice in best.recipe.items()}
    record.facts |= {"training": best.training, "plan": best.plan}
    record_recipe(record, best.config(config), recipe)
    reporter = bench.reporter_of(best)
    bench.shared.make_ready(planned.chosen.plan)
    checkpoint = checkpoint_to_resume(run, best.training, reporter)
    trainer = trainer_of(run, files, bench.shared.model, planned, best.training, bench.times, reporter)
    with complete_checkpoints(files, checkpoint):
        outcome = run_training(trainer, run, files, planned.config, checkpoint, reporter)  # restores the end
        save(run, trainer)
    for trial in search.trials.values():
        shutil.rmtree(search.files_of(trial).checkpoints, ignore_errors=True)
    result = result_of(run, trainer, planned.config, planned.chosen, outcome, record.entry["inputs"])
    seconds = sum(trial.seconds for trial in search.trials.values())
    return replace(result, seconds=seconds, tokens_per_second=best.tokens_per_second, search=report(search, order))


def move_files(search: Search, best: Trial) -> None:
    """Make a trial's checkpoints and figures those of the run; done before a kill, it is done again for what is left."""
    files, own = search.files_of(best), search.run.training_files
    own.checkpoints.mkdir(exist_ok=True)
    for checkpoint in files.checkpoints.glob("checkpoint-*"):
        checkpoint.rename(own.checkpoints / checkpoint.name)
    write_atomically(own.metrics, files.metrics.read_text(encoding="utf-8"))


def report(search: Search, order: Sequence[Trial]) -> dict[str, Any]:
    """All trials for the result, the best first; `order` has those that were trained to the end."""
    rest = [trial for trial in search.trials.values() if trial not in order]
    rest.sort(key=lambda trial: (trial.failure is not None, -len(trial.results), *standing(trial, search.metric)))
    return {
        "metric": search.metric,
        "recipes": [described(trial, trial in order[:1], trial in order) for trial in (*order, *rest)],
    }


def standing(trial: Trial, metric: str) -> tuple[float, ...]:
    return trial.results[-1].standing(metric) if trial.results else ()


def described(trial: Trial, kept: bool, finished: bool) -> dict[str, Any]:
    last = trial.results[-1] if trial.results else None
    outcome = "kept" if kept else "trained to the end" if finished else trial.failure
    if outcome is None and last is not None:
        outcome = f"dropped after {Fraction(last.share)} of its steps"
    return {
        "number": trial.number,
        "settings": trial.settings,
        "steps_done": last.step if last else 0,
        "steps": trial.steps,
        "eval_loss": last.eval_loss if last else None,
        "exact_match": last.exact_match if last else None,
        "kept": kept,
        "outcome": outcome,
    }
