"""The trials of a search, trained in turn from rung to rung."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from llmft_cli.base.errors import Interrupted, VerificationError
from llmft_cli.base.reporter import Reporter
from llmft_cli.base.stage_times import StageTimes
from llmft_cli.search.answers import Questions, exact_match
from llmft_cli.search.halving import entrants, ranked
from llmft_cli.search.shared_model import SharedModel, TrialReporter
from llmft_cli.search.trials import AUTOMATIC, EXACT_MATCH, Result, Search, Trial
from llmft_cli.training.judgement.result import kept_eval_loss
from llmft_cli.training.loop.callbacks import check_finite
from llmft_cli.training.loop.run_files import complete_checkpoints
from llmft_cli.training.planning.planned import Planned
from llmft_cli.training.resume import intact_checkpoint
from llmft_cli.training.train import run_training, trainer_of

if TYPE_CHECKING:
    from llmft_cli.training.judgement.result import Outcome
    from llmft_cli.training.loop.trainer import QLoRATrainer


@dataclass(frozen=True)
class Bench:
    """What the trials of a search are trained with.

    Attributes:
        plans: of each trial, by number.
        base_name: of the base model.
        questions: the held-out rows to answer; None if the recipes are compared by their loss.
    """

    search: Search
    plans: Mapping[int, Planned]
    shared: SharedModel
    base_name: str
    questions: Questions | None
    reporter: Reporter
    times: StageTimes

    def reporter_of(self, trial: Trial) -> TrialReporter:
        return TrialReporter(self.reporter, f"recipe {trial.number} of {len(self.search.trials)}")


def run_rungs(bench: Bench) -> None:
    """Train the trials that are left up to each rung, and drop the worse half; what is done already is not done again."""
    search = bench.search
    for rung, share in enumerate(search.shares):
        for trial in entrants(search, rung):
            if trial.failure is None and len(trial.results) == rung:
                search.update(at_rung(bench, trial, share))
        left = entrants(search, rung + 1) if rung + 1 < len(search.shares) else []
        if not left:
            return
        bench.reporter.note(in_words(search, rung, left))
        for trial in search.trials.values():
            if trial not in left:
                shutil.rmtree(search.files_of(trial).checkpoints, ignore_errors=True)


def at_rung(bench: Bench, trial: Trial, share: float) -> Trial:
    """The trial, trained to this share of its steps."""
    if trial.results and trial.results[-1].ended:
        return replace(trial, results=(*trial.results, replace(trial.results[-1], share=share)))
    steps = math.ceil(share * trial.steps)
    pause_after = steps if steps < trial.steps else None
    try:
        trainer, outcome = train_trial(bench, trial, pause_after)
        result = measured(bench, trial, trainer, share, pause_after)
    except VerificationError as error:  # it diverged, which is a result of its recipe
        bench.reporter.warn(f"recipe {trial.number} is left out: {error.message}")
        return replace(trial, failure=error.message)
    return replace(
        trial,
        results=(*trial.results, result),
        seconds=trial.seconds + outcome.seconds,
        tokens_per_second=trainer.clock.tokens_per_second or trial.tokens_per_second,
    )


def train_trial(bench: Bench, trial: Trial, pause_after: int | None) -> tuple[QLoRATrainer, Outcome]:
    """Train a trial from where it stands up to a step, or to its end; raises as `run_training`."""
    search, planned = bench.search, bench.plans[trial.number]
    files, reporter = search.files_of(trial), bench.reporter_of(trial)
    files.folder.mkdir(exist_ok=True)
    checkpoint = intact_checkpoint(files.checkpoints, trial.training, reporter)
    bench.shared.make_ready(planned.chosen.plan)
    trainer = trainer_of(search.run, files, bench.shared.model, planned, trial.training, bench.times, reporter)
    try:
        with complete_checkpoints(files, checkpoint):
            outcome = run_training(trainer, search.run, files, planned.config, checkpoint, reporter, pause_after)
    except Interrupted as error:
        raise Interrupted(f"recipe {trial.number} {error.message}", error.hint) from None
    return trainer, outcome


def measured(bench: Bench, trial: Trial, trainer: QLoRATrainer, share: float, pause_after: int | None) -> Result:
    """What the trained adapter gives on the held-out rows.

    Raises:
        VerificationError: its loss is not finite.
    """
    step = trainer.state.global_step
    ended = step != pause_after
    loss = kept_eval_loss(trainer) if ended else lowest_loss(trainer)
    assert loss is not None  # a search has held-out rows, and the last step is evaluated
    score = None
    if bench.questions is not None:
        config, reporter = bench.plans[trial.number].config, bench.reporter_of(trial)
        with bench.times.during("answers"):
            score = exact_match(
                bench.shared.model, bench.shared.own_attention, bench.questions, bench.base_name, config, reporter
            )
    return Result(share, step, loss, score, ended)


def lowest_loss(trainer: QLoRATrainer) -> float:
    """The lowest held-out loss of a paused training: of its evaluations, and of the adapter as it is.

    The trainer must not know of an evaluation that its own training would not have: it might keep that adapter.
    """
    step = trainer.state.global_step
    losses = {row["step"]: float(row["eval_loss"]) for row in trainer.state.log_history if "eval_loss" in row}
    losses.pop(0, None)  # of the base
    if step not in losses:
        losses[step] = trainer.held_out_loss()
        check_finite({"eval_loss": losses[step]}, step)
    return min(losses.values()) if trainer.keeps_best else losses[step]


def in_words(search: Search, rung: int, left: list[Trial]) -> str:
    """A line on a finished rung: the trials that go on, and those that do not."""
    order = ranked(entrants(search, rung), rung, search.metric)
    going_on, dropped = (
        [figure(trial, rung, search.metric) for trial in order if (trial in left) is on] for on in (True, False)
    )
    ending = f"; dropped: {', '.join(dropped)}" if dropped else ""
    return f"after {Fraction(search.shares[rung])} of the steps: {', '.join(going_on)}{ending}"


def figure(trial: Trial, rung: int, metric: str) -> str:
    result = trial.results[rung]
    score = f"{result.exact_match:.1%}, loss " if metric == EXACT_MATCH and result.exact_match is not None else ""
    name = "automatic recipe" if trial.number == AUTOMATIC else f"recipe {trial.number}"
    return f"{name} ({score}{result.eval_loss:.4f})"
