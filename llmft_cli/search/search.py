"""train --search: successive halving over recipes, on one model; the best adapter becomes the run's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import Interrupted, is_interrupt
from llmft_cli.base.libraries import collector_paused, import_training_libraries
from llmft_cli.base.reporter import Reporter, Silent
from llmft_cli.base.stage_times import StageTimes
from llmft_cli.models import model_source
from llmft_cli.models.expected_time import TRAINING, warn_if_long
from llmft_cli.models.model_source import ModelSource
from llmft_cli.recipe.settle import in_words
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import StageRecord
from llmft_cli.search.candidates import propose
from llmft_cli.search.halving import shares_of, trainings
from llmft_cli.search.request import check_can_search, check_held_out_rows
from llmft_cli.search.trials import AUTOMATIC, EXACT_MATCH, Asked, Search, Trial, read
from llmft_cli.settings.config import Config
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.loop.run_files import begin
from llmft_cli.training.planning.preflight import check_before_loading
from llmft_cli.training.resume import facts_of, new_identity
from llmft_cli.training.train import in_stage, settle_device

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from llmft_cli.training.planning.planned import Planned


def search(
    run: RunDir,
    config: Config,
    reporter: Reporter,
    asked: Asked,
    *,
    overwrite: bool = False,
    resume: bool = False,
    allow_stale: bool = False,
    times: StageTimes | None = None,
) -> TrainResult:
    """Train several recipes on the run's prepared data, and keep the adapter of the best one.

    Args:
        asked: how many recipes, and what they are compared by; for a search to resume, what was recorded.

    Raises:
        StageError: as `train`, or no rows are held out.
        ConfigError: a setting makes no sense in a search.
        Interrupted: the user asked to stop; the search can be resumed.
        VerificationError: no recipe could be trained to the end.
    """
    times = times or StageTimes("imports")
    check_can_search(config)

    def work(record: StageRecord, config: Config, recorded: Mapping[str, Any]) -> TrainResult:
        check_held_out_rows(run)
        return search_recipes(record, config, reporter, recorded, asked, times)

    return in_stage(run, config, work, times, resume=resume, overwrite=overwrite, replaced=overwrite, allow_stale=allow_stale)


def search_recipes(
    record: StageRecord,
    config: Config,
    reporter: Reporter,
    recorded: Mapping[str, Any],
    asked: Asked,
    times: StageTimes,
) -> TrainResult:
    """The stage itself; `recorded` is the ledger entry of the search to resume, and empty for a new one."""
    reporter.note("loading torch and transformers")
    with collector_paused():
        import_training_libraries()  # first: it silences bitsandbytes, which others import
        from llmft_cli.search.answers import held_out_questions
        from llmft_cli.search.finish import finish
        from llmft_cli.search.shared_model import load_shared
        from llmft_cli.search.trial_training import Bench, run_rungs

        device, config = settle_device(config, recorded.get("compute_dtype"), reporter)
    run = record.run
    source = model_source.base_model(run, recorded.get("model"), config, reporter)
    if recorded:
        found, plans = resumed(record, source, config, device, read(run, recorded["training"]))
    else:
        found, plans = begun(record, source, config, device, asked, reporter)
    record.facts |= facts_of(source, config, found.trials[AUTOMATIC].training, plans[AUTOMATIC].chosen.plan)
    record.facts["search"] = asdict(asked)
    record.save_facts()
    questions = held_out_questions(run, source, config, reporter) if asked.metric == EXACT_MATCH else None
    times.enter("loading")
    shared = load_shared(source, plans[AUTOMATIC].config, [plan.chosen.plan for plan in plans.values()], device, reporter)
    warn_if_long_on_cpu(found, plans, shared.model, reporter)
    begin(record, None, resumed=bool(recorded))
    found.save()
    bench = Bench(found, plans, shared, source.name, questions, reporter, times)
    with resumable(record):
        run_rungs(bench)
        times.enter("end")
        return finish(bench, record, config)


@contextmanager
def resumable(record: StageRecord) -> Iterator[None]:
    """Say how to go on after an interrupt between two trainings, or a second one within."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Interrupted) or not is_interrupt(error):
            raise
        run = record.run
        go_on = run.flag_to_go_on({**record.entry, **record.facts})
        raise Interrupted("the search was interrupted", f"go on with: {run.command_for('train')}{go_on}") from None


def begun(
    record: StageRecord, source: ModelSource, config: Config, device: torch.device, asked: Asked, reporter: Reporter
) -> tuple[Search, dict[int, Planned]]:
    """A new search, with the plan of each trial by its number.

    Raises:
        ConfigError: there is nothing to vary.
        OutOfMemory: a plan does not fit.
    """
    from llmft_cli.training.loop import schedule
    from llmft_cli.training.planning.planned import planned
    from llmft_cli.training.planning.recipe import facts_of_training, record_recipe

    run = record.run
    candidates = propose(config, facts_of_training(source, config, run), asked.recipes)
    automatic = candidates[0]
    check_before_loading(run, source, automatic.config, reporter)
    record_recipe(record, automatic.config, automatic.recipe)
    for line in [*in_words(automatic.recipe), in_short(len(candidates), asked)]:
        reporter.note(line)
    found, plans = Search(run, asked.metric, shares_of(len(candidates))), {}
    search_id = uuid.uuid4().hex
    for number, candidate in enumerate(candidates, AUTOMATIC):
        plan = planned(run, source, candidate.config, device, reporter if number == AUTOMATIC else Silent())
        identity = {**new_identity(candidate.config, record.entry["inputs"], source), "id": search_id}
        steps = schedule.plan(plan.sequences, plan.config).total
        found.trials[number] = Trial(number, candidate.recipe, identity, asdict(plan.chosen.plan), steps)
        plans[number] = plan
    return found, plans


def in_short(recipes: int, asked: Asked) -> str:
    """What a search will do, in a line."""
    fewer = "" if recipes == asked.recipes else f" (no more than these differ, of {asked.recipes})"
    by = "exact match on the held-out rows" if asked.metric == EXACT_MATCH else "held-out loss"
    return f"search: {recipes} recipes{fewer} by {by}, in the time of about {trainings(recipes):.1f} trainings"


def resumed(
    record: StageRecord, source: ModelSource, config: Config, device: torch.device, found: Search
) -> tuple[Search, dict[int, Planned]]:
    """A search to go on with, with the plan of each trial by its number; raises OutOfMemory as `begun`."""
    from llmft_cli.training.planning.planned import planned

    run, plans = record.run, {}
    for number, trial in found.trials.items():
        plans[number] = planned(run, source, trial.config(config), device, Silent(), trial.plan)
    return found, plans


def warn_if_long_on_cpu(found: Search, plans: Mapping[int, Planned], model: PeftModel, reporter: Reporter) -> None:
    from llmft_cli.training.loop import schedule

    tokens = sum(schedule.training_tokens(plan.sequences, plan.config) for plan in plans.values()) / len(plans)
    less, dtype = "use a GPU, a smaller --model, or fewer recipes", plans[AUTOMATIC].config.compute_dtype
    warn_if_long("the search", model, int(tokens * trainings(len(plans))), TRAINING, model.device, dtype, less, reporter)
