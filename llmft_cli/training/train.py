"""train: an adapter on the quantised base, with checkpoints, figures and a chart in the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.cpu_memory import keep_freed_memory
from llmft_cli.base.cpu_threads import use_free_cores
from llmft_cli.base.errors import Interrupted
from llmft_cli.base.files import hash_path
from llmft_cli.base.libraries import collector_paused, import_training_libraries
from llmft_cli.base.reporter import Reporter
from llmft_cli.base.stage_times import StageTimes
from llmft_cli.data.store import VALIDATION, check_version, load_split
from llmft_cli.models import loading, model_source
from llmft_cli.run_dir import checkpoints
from llmft_cli.run_dir.checkpoints import Identity
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import StageRecord
from llmft_cli.run_dir.stages import stage as run_stage
from llmft_cli.run_dir.training_files import TrainingFiles
from llmft_cli.settings import compute_types
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.settings.quantities import format_count
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.judgement.result import Outcome, TrainResult, result_of
from llmft_cli.training.loop import loss_chart, schedule
from llmft_cli.training.loop.run_files import begin, complete_checkpoints, save
from llmft_cli.training.loop.tracking import check_installed, tracked
from llmft_cli.training.planning.preflight import check_before_loading
from llmft_cli.training.resume import begin_or_resume, checkpoint_to_resume, facts_of, with_data_settings
from llmft_cli.training.starting_adapter import StartingAdapter, new_training

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from llmft_cli.base.reporter import Advance
    from llmft_cli.training.loop.callbacks import StopRequest
    from llmft_cli.training.loop.trainer import QLoRATrainer
    from llmft_cli.training.planning.planned import Planned


def train(
    run: RunDir,
    config: Config,
    reporter: Reporter,
    *,
    overwrite: bool = False,
    resume: bool = False,
    start: StartingAdapter | None = None,
    allow_stale: bool = False,
    profile: bool = False,
    times: StageTimes | None = None,
) -> TrainResult:
    """Train an adapter on the run's prepared data: load, plan, build, train, save.

    Args:
        resume: continue an interrupted training run from its last intact checkpoint.
        start: an adapter to train further; None for a new one.
        profile: write to `profile/` where the time of a step goes.
        times: those of the process so far; None starts here.

    Raises:
        StageError: the run is not prepared, was prepared with other settings, or is trained already.
        Interrupted: the user asked to stop; the training can be resumed from its checkpoint.
        VerificationError: the loss is not a number, or the adapter changed nothing.
    """
    times = times or StageTimes("imports")

    def work(record: StageRecord, config: Config, recorded: Mapping[str, Any]) -> TrainResult:
        return train_adapter(record, config, reporter, recorded, start, profile, times)

    replaced = overwrite or (start is not None and start.of_this_run)
    return in_stage(run, config, work, times, resume=resume, overwrite=overwrite, replaced=replaced, allow_stale=allow_stale)


def in_stage(
    run: RunDir,
    config: Config,
    work: Callable[[StageRecord, Config, Mapping[str, Any]], TrainResult],
    times: StageTimes,
    *,
    resume: bool,
    overwrite: bool,
    replaced: bool,
    allow_stale: bool,
) -> TrainResult:
    """Check the run and the settings, and do the work as the run's stage `train`; raises as `train`.

    Args:
        work: gets the record of the stage, the settings, and the ledger entry of the training to resume, empty for a new one.
        replaced: whether a finished training is replaced.
    """
    config = checked(run, config, allow_stale)
    recorded = begin_or_resume(run, config, resume, overwrite)
    inputs = recorded.get("inputs") or {name: hash_path(run.path / name) for name in ("data", "tokenizer")}
    with run_stage(run, "train", settings.of_command(config, "train"), inputs, replaced, resume) as record:
        result = work(record, config, recorded)
        record.outputs += ["adapter", "metrics.jsonl", "loss.svg"]
        record.facts["headline"] = asdict(result)
    return replace(result, timings=times.seconds)


def train_adapter(
    record: StageRecord,
    config: Config,
    reporter: Reporter,
    recorded: Mapping[str, Any],
    start: StartingAdapter | None,
    profile: bool,
    times: StageTimes,
) -> TrainResult:
    """The stage itself; `recorded` is the ledger entry of the training to resume, and empty for a new one."""
    reporter.note("loading torch and transformers")
    with collector_paused():
        import_training_libraries()  # first: it silences bitsandbytes, which others import
        from llmft_cli.training.loop.expected_end import warn_if_long_on_cpu
        from llmft_cli.training.planning.planned import planned
        from llmft_cli.training.planning.recipe import facts_of_training, settle_recipe
        from llmft_cli.training.profiling.profiling import profiled
        from llmft_cli.training.step.built_model import build, load

        device, config = settle_device(config, recorded.get("compute_dtype"), reporter)
    run = record.run
    source = model_source.base_model(run, recorded.get("model"), config, reporter)
    config = settle_recipe(record, facts_of_training(source, config, run), config, reporter)
    training = recorded.get("training") or new_training(start, config, record.entry["inputs"], source)
    checkpoint = checkpoint_to_resume(run, training, reporter) if recorded else None
    times.enter("planning")
    check_before_loading(run, source, config, reporter)
    plan = planned(run, source, config, device, reporter, recorded.get("plan"))
    config, chosen = plan.config, plan.chosen
    record.facts |= facts_of(source, config, training, chosen.plan)
    record.save_facts()
    times.enter("loading")
    model = build(load(source, config, device, reporter), source.name, config, chosen.plan, start, reporter)
    trainer = trainer_of(run, run.training_files, model, plan, training, times, reporter)
    warn_if_long_on_cpu(trainer, config, reporter)
    begin(record, start, resumed=checkpoint is not None)
    with complete_checkpoints(run.training_files, checkpoint):
        with (
            tracked(trainer, run, config, record, recorded, checkpoint, reporter),
            profiled(profile, trainer, config, chosen.plan, run.path / "profile", reporter) as found_profile,
        ):
            outcome = run_training(trainer, run, run.training_files, config, checkpoint, reporter)
        times.enter("end")
        save(run, trainer)
        return result_of(run, trainer, config, chosen, replace(outcome, profile=found_profile()), record.entry["inputs"])


def checked(run: RunDir, config: Config, allow_stale: bool) -> Config:
    """Check the prepared data, and what the settings name besides the model: trackers, optimizer and plan.

    Returns:
        The settings, with the length that the data was prepared for.

    Raises:
        StageError: the run is not prepared, or was prepared with other settings or by an earlier version.
        MachineError: a tracker is not installed.
        ConfigError: there is no such optimizer, or the plan cannot be read.
    """
    from llmft_cli.training.planning.plan_files import check_choices

    config = with_data_settings(run, run.require("prepare", allow_stale)["config"], config)
    check_version(run.data)
    check_installed(config.report_to)
    check_choices(config)
    return config


def settle_device(config: Config, recorded_type: str | None, reporter: Reporter) -> tuple[torch.device, Config]:
    """The device to train on, and the settings with the type to compute in on it."""
    device = loading.pick_device(config.device)
    config = compute_types.settled(config, device, reporter, recorded_type)
    use_free_cores(device, reporter)
    return device, config


def trainer_of(
    run: RunDir,
    files: TrainingFiles,
    model: PeftModel,
    plan: Planned,
    training: Identity,
    times: StageTimes,
    reporter: Reporter,
) -> QLoRATrainer:
    """A trainer of the model on the run's rows, which writes its checkpoints to `files`."""
    from llmft_cli.training.loop.trainer import QLoRATrainer

    config, sequences = plan.config, plan.sequences
    held_out = load_split(run.data, VALIDATION)
    steps = schedule.plan(sequences, config)
    trainer = QLoRATrainer(
        group_by_length=not config.packing,
        tokens_per_batch=config.tokens_per_batch,
        reporter=reporter,
        training=training,
        checkpoints_kept=config.save_total_limit,
        model=model,
        args=schedule.training_arguments(files.checkpoints, steps, config, model.device, evaluate=held_out is not None),
        train_dataset=sequences,
        eval_dataset=None if held_out is None else Sequences.one_each(held_out),
        data_collator=collate,
    )
    trainer.times = times
    return trainer


def run_training(
    trainer: QLoRATrainer,
    run: RunDir,
    files: TrainingFiles,
    config: Config,
    checkpoint: Path | None,
    reporter: Reporter,
    pause_after: int | None = None,
) -> Outcome:
    """Train until the last step, or up to the one to pause after; the longest batch first on a GPU.

    Raises:
        Interrupted: the user or the system asked to stop.
        OutOfMemory: a single row takes too much.
    """
    from llmft_cli.training.judgement.starting_loss import StartingLoss
    from llmft_cli.training.loop.callbacks import Rehearsal

    if checkpoint:
        trainer.clock.tokens = loss_chart.tokens_so_far(files.metrics)
    rehearsal = Rehearsal(trainer, reporter)
    if trainer.args.device.type == "cuda":  # a CPU's memory swaps rather than fails, and the time is worth more
        trainer.add_callback(rehearsal)
    else:
        keep_freed_memory()
    trainer.add_callback(StartingLoss(trainer))  # after the longest batch: if that does not fit, it is told at once
    started = time.perf_counter()
    run_trainer(trainer, run, files, config, checkpoint, reporter, pause_after)
    return Outcome(time.perf_counter() - started, rehearsal.peak_bytes)


def run_trainer(
    trainer: QLoRATrainer,
    run: RunDir,
    files: TrainingFiles,
    config: Config,
    checkpoint: Path | None,
    reporter: Reporter,
    pause_after: int | None,
) -> None:
    """Train with our callbacks; see `run_training`."""
    from llmft_cli.training.loop.callbacks import StopRequest
    from llmft_cli.training.loop.out_of_memory import leaving_a_checkpoint
    from llmft_cli.training.loop.resuming import train_after

    stop = StopRequest(reporter, pause_after)
    done = checkpoints.step_of(checkpoint) if checkpoint else 0
    total = trainer.args.max_steps
    with stop.listening(), reporter.track("training", total=pause_after or total, done=done) as advance:
        add_callbacks(trainer, files, config, stop, advance, reporter)
        trainer.times.enter("first step")
        with leaving_a_checkpoint(trainer, run, config):
            train_after(checkpoint, trainer, pause_after)
    if trainer.loss_scale is not None and (skipped := trainer.loss_scale.skipped_steps):
        reporter.note(
            f"{format_count(skipped, 'step')} skipped because gradients overflowed fp16; the loss scale was reduced each time"
        )
    if stop.made and trainer.state.global_step < total:
        raise Interrupted(
            f"stopped after step {trainer.state.global_step} of {total}", f"resume with: llmft train {run.path} --resume"
        )


def add_callbacks(
    trainer: QLoRATrainer, files: TrainingFiles, config: Config, stop: StopRequest, advance: Advance, reporter: Reporter
) -> None:
    """Figures instead of prints, the expected end, stopping when asked to, and early stopping."""
    from transformers import PrinterCallback

    from llmft_cli.training.loop.callbacks import Figures, FirstStep, StopWhenAsked
    from llmft_cli.training.loop.expected_end import ExpectedEnd
    from llmft_cli.training.loop.resuming import DueEvaluation, Patience

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(FirstStep(trainer.times))
    trainer.add_callback(Figures(files.metrics, trainer.clock, reporter, advance, trainer.loss_scale))
    held_out_tokens = trainer.eval_dataset.tokens if trainer.eval_dataset is not None else 0
    trainer.add_callback(ExpectedEnd(trainer.clock, held_out_tokens, reporter))
    trainer.add_callback(StopWhenAsked(stop))
    if config.early_stopping_patience and trainer.eval_dataset is not None:
        trainer.add_callback(Patience(config.early_stopping_patience))
    trainer.add_callback(DueEvaluation(trainer))
