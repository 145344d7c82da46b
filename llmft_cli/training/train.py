"""train: an adapter on the quantised base, with checkpoints, figures and a chart in the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.cpu_memory import keep_freed_memory
from llmft_cli.base.cpu_threads import use_free_cores
from llmft_cli.base.errors import Interrupted
from llmft_cli.base.files import hash_path
from llmft_cli.base.libraries import collector_paused, import_training_libraries, import_transformers
from llmft_cli.base.reporter import Reporter
from llmft_cli.base.stage_times import StageTimes
from llmft_cli.data.store import VALIDATION, check_version, load_split, training_rows
from llmft_cli.models import loading, model_source
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir import checkpoints
from llmft_cli.run_dir.checkpoints import Identity
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import StageRecord
from llmft_cli.run_dir.stages import stage as run_stage
from llmft_cli.settings import compute_types
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.settings.quantities import format_count
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.sequences import Sequences, training_sequences
from llmft_cli.training.judgement.result import Outcome, TrainResult, result_of
from llmft_cli.training.loop import loss_chart, schedule
from llmft_cli.training.loop.run_files import complete_checkpoints, save
from llmft_cli.training.loop.tracking import check_installed, tracked
from llmft_cli.training.planning.preflight import check_before_loading
from llmft_cli.training.resume import begin_or_resume, facts_of, intact_checkpoint, with_data_settings
from llmft_cli.training.starting_adapter import StartingAdapter, load_into, new_training

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from llmft_cli.base.reporter import Advance
    from llmft_cli.training.loop.callbacks import StopRequest
    from llmft_cli.training.loop.trainer import QLoRATrainer
    from llmft_cli.training.plan import Plan


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
    config = checked(run, config, allow_stale)
    recorded = begin_or_resume(run, config, resume, overwrite)
    inputs = recorded.get("inputs") or {name: hash_path(run.path / name) for name in ("data", "tokenizer")}
    replace_done = overwrite or (start is not None and start.of_this_run)
    with run_stage(run, "train", settings.of_command(config, "train"), inputs, replace_done, resume) as record:
        result = train_adapter(record, config, reporter, recorded, start, profile, times)
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
        from llmft_cli.training.planning.decide import decide
        from llmft_cli.training.planning.recipe import settle_recipe

        device, config = settle_device(config, recorded.get("compute_dtype"), reporter)
    run = record.run
    source = model_source.base_model(run, recorded.get("model"), config, reporter)
    import_training_libraries()
    config = settle_recipe(record, source, config, reporter)
    training = recorded.get("training") or new_training(start, config, record.entry["inputs"], source)
    checkpoint = intact_checkpoint(run, training, reporter) if recorded else None
    times.enter("planning")
    check_before_loading(run, source, config, reporter)
    sequences = training_sequences(training_rows(run.data), config)
    chosen = decide(source, config, sequences, device, reporter, recorded.get("plan"))
    record.facts |= facts_of(source, config, training, chosen.plan)
    record.save_facts()
    config = chosen.applied_to(config)
    if sequences.passes is not None:
        sequences = sequences.in_passes(config.gradient_accumulation_steps)
    times.enter("loading")
    base = load(source, config, device, reporter)
    model = build(base, source.name, config, chosen.plan, start, reporter)
    trainer = trainer_of(run, model, config, sequences, training, reporter)
    trainer.times = times
    with complete_checkpoints(run, checkpoint, start, record):
        with tracked(trainer, run, config, record, recorded, checkpoint, reporter):
            outcome = run_training(trainer, run, config, chosen.plan, checkpoint, reporter, profile)
        times.enter("end")
        save(run, trainer)
        return result_of(run, trainer, config, chosen, outcome, record.entry["inputs"])


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


def load(source: ModelSource, config: Config, device: torch.device, reporter: Reporter) -> PreTrainedModel:
    """The quantised base on the device, within `--max-vram`."""
    from llmft_cli.training.device_memory import hold_to

    if config.max_vram is not None and device.type == "cuda":
        hold_to(config.max_vram, device)
    reporter.note(f"loading {source.name} ({config.quantization}) on {device}")
    base = loading.load_base(source, device, compute_types.torch_type(config.compute_dtype), config.quantization)
    loading.keep_training_layout(base)
    if config.quantization != "none" and (notice := loading.dense_experts_notice(base)):
        reporter.warn(notice)
    return base


def build(
    base: PreTrainedModel, base_name: str, config: Config, plan: Plan, start: StartingAdapter | None, reporter: Reporter
) -> PeftModel:
    """The base with an adapter, drawn from the seed or with the weights to start from, and laid out by the plan."""
    from llmft_cli.training.step.row_separation import settle_attention, settle_rows
    from llmft_cli.training.step.tuned_model import (
        apply_plan,
        has_room_for_dequantized_weights,
        make_trainable,
        why_plain_layers,
    )

    import_transformers().set_seed(config.seed)
    own_attention = base.config._attn_implementation
    kept = plan.dequantized_weights or has_room_for_dequantized_weights(base)
    model = make_trainable(base, config, base_name)
    if start is not None:
        load_into(model, start)
    apply_plan(model, replace(plan, dequantized_weights=kept))
    if plain := why_plain_layers(model, config):
        reporter.note(f"fused layers are not used: {plain}")
    settle_attention(model, own_attention)
    if not settle_rows(model):
        reporter.note("this model mixes packed rows: running each row separately")
    return model


def trainer_of(
    run: RunDir, model: PeftModel, config: Config, sequences: Sequences, training: Identity, reporter: Reporter
) -> QLoRATrainer:
    from llmft_cli.training.loop.trainer import QLoRATrainer

    held_out = load_split(run.data, VALIDATION)
    steps = schedule.plan(sequences, config)
    return QLoRATrainer(
        group_by_length=not config.packing,
        tokens_per_batch=config.tokens_per_batch,
        reporter=reporter,
        training=training,
        checkpoints_kept=config.save_total_limit,
        model=model,
        args=schedule.training_arguments(run.checkpoints, steps, config, model.device, evaluate=held_out is not None),
        train_dataset=sequences,
        eval_dataset=None if held_out is None else Sequences.one_each(held_out),
        data_collator=collate,
    )


def run_training(
    trainer: QLoRATrainer,
    run: RunDir,
    config: Config,
    plan: Plan,
    checkpoint: Path | None,
    reporter: Reporter,
    profile: bool,
) -> Outcome:
    """Train until the last step, the longest batch first on a GPU.

    Raises:
        Interrupted: the user or the system asked to stop.
        OutOfMemory: a single row takes too much.
    """
    from llmft_cli.training.judgement.starting_loss import StartingLoss
    from llmft_cli.training.loop.callbacks import Rehearsal
    from llmft_cli.training.loop.expected_end import warn_if_long_on_cpu
    from llmft_cli.training.profiling.profiling import profiled

    if checkpoint:
        trainer.clock.tokens = loss_chart.tokens_so_far(run.metrics)
    rehearsal = Rehearsal(trainer, reporter)
    if trainer.args.device.type == "cuda":  # a CPU's memory swaps rather than fails, and the time is worth more
        trainer.add_callback(rehearsal)
    else:
        keep_freed_memory()
    trainer.add_callback(StartingLoss(trainer))  # after the longest batch: if that does not fit, it is told at once
    warn_if_long_on_cpu(trainer, config, reporter)
    started = time.perf_counter()
    with profiled(profile, trainer, config, plan, run.path / "profile", reporter) as found_profile:
        run_trainer(trainer, run, config, checkpoint, reporter)
    return Outcome(time.perf_counter() - started, rehearsal.peak_bytes, found_profile())


def run_trainer(trainer: QLoRATrainer, run: RunDir, config: Config, checkpoint: Path | None, reporter: Reporter) -> None:
    """Train with our callbacks; see `run_training`."""
    from llmft_cli.training.loop.callbacks import StopRequest
    from llmft_cli.training.loop.out_of_memory import leaving_a_checkpoint
    from llmft_cli.training.loop.resuming import train_to_the_end

    stop = StopRequest(reporter)
    done = checkpoints.step_of(checkpoint) if checkpoint else 0
    total = trainer.args.max_steps
    with stop.listening(), reporter.track("training", total=total, done=done) as advance:
        add_callbacks(trainer, run, config, stop, advance, reporter)
        trainer.times.enter("first step")
        with leaving_a_checkpoint(trainer, run, config):
            train_to_the_end(trainer, checkpoint)
    if trainer.loss_scale is not None and (skipped := trainer.loss_scale.skipped_steps):
        reporter.note(
            f"{format_count(skipped, 'step')} skipped because gradients overflowed fp16; the loss scale was reduced each time"
        )
    if stop.made and trainer.state.global_step < total:
        raise Interrupted(
            f"stopped after step {trainer.state.global_step} of {total}", f"resume with: llmft train {run.path} --resume"
        )


def add_callbacks(
    trainer: QLoRATrainer, run: RunDir, config: Config, stop: StopRequest, advance: Advance, reporter: Reporter
) -> None:
    """Figures instead of prints, the expected end, stopping when asked to, and early stopping."""
    from transformers import PrinterCallback

    from llmft_cli.training.loop.callbacks import Figures, FirstStep, StopWhenAsked
    from llmft_cli.training.loop.expected_end import ExpectedEnd
    from llmft_cli.training.loop.resuming import DueEvaluation, Patience

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(FirstStep(trainer.times))
    trainer.add_callback(Figures(run.metrics, trainer.clock, reporter, advance, trainer.loss_scale))
    held_out_tokens = trainer.eval_dataset.tokens if trainer.eval_dataset is not None else 0
    trainer.add_callback(ExpectedEnd(trainer.clock, held_out_tokens, reporter))
    trainer.add_callback(StopWhenAsked(stop))
    if config.early_stopping_patience and trainer.eval_dataset is not None:
        trainer.add_callback(Patience(config.early_stopping_patience))
    trainer.add_callback(DueEvaluation(trainer))
