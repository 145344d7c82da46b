"""train: an adapter on the quantised base, with checkpoints, figures and a chart in the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.cpu_memory import keep_freed_memory
from llmft_cli.base.cpu_threads import use_free_cores
from llmft_cli.base.errors import Interrupted
from llmft_cli.base.files import hash_path, replacing_directory
from llmft_cli.base.libraries import hardware, import_transformers, versions
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.store import TRAIN, VALIDATION, load_split
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import check_changes_something, save_adapter
from llmft_cli.models.expected_time import TRAINING, warn_if_long
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir import RunDir
from llmft_cli.settings import compute_types
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.training import result
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.token_batches import sequence_lengths
from llmft_cli.training.loop import checkpoints, loss_chart, schedule
from llmft_cli.training.loop.schedule import Schedule
from llmft_cli.training.loop.tracking import wandb_run
from llmft_cli.training.result import TrainResult
from llmft_cli.training.resume import check_same_data_settings, checkpoint_to_resume, refuse_to_forget_checkpoints

if TYPE_CHECKING:
    import datasets
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from llmft_cli.training.loop.trainer import QLoRATrainer
    from llmft_cli.training.plan import Plan
    from llmft_cli.training.planning.decide import Layout
    from llmft_cli.training.profiling.profiling import Profile


def train(
    run: RunDir,
    config: Config,
    reporter: Reporter,
    *,
    overwrite: bool = False,
    resume: bool = False,
    allow_stale: bool = False,
    profile: bool = False,
) -> TrainResult:
    """Train an adapter on the run's prepared data.

    Args:
        resume: continue an interrupted training from its last complete checkpoint.
        profile: leave in `profile/` where the time of a step goes.

    Raises:
        StageError: the run is not prepared, was prepared with other settings, or is trained already.
        Interrupted: asked to stop; the checkpoint can be resumed from.
        VerificationError: the loss is not a number, or the adapter changed nothing.
    """
    from llmft_cli.training.device_memory import hold_to
    from llmft_cli.training.planning.decide import decide

    prepared = run.require("prepare", allow_stale)
    check_same_data_settings(run, prepared["config"], config)
    checkpoint = checkpoint_to_resume(run, config) if resume else None
    recorded = (run.entry("train") or {}) if resume else {}
    if not resume and not overwrite:
        refuse_to_forget_checkpoints(run)
    inputs = {name: hash_path(run.path / name) for name in ("data", "tokenizer")}
    with run.stage("train", settings.of_command(config, "train"), inputs, overwrite, resume) as record:
        device = loading.pick_device(config.device)
        config = compute_types.settled(config, device, reporter, recorded.get("compute_dtype"))
        use_free_cores(device, reporter)
        source = base_model(recorded.get("model"), config, reporter)
        record.facts |= {"model": source.facts(), "seed": config.seed, "versions": versions(), "hardware": hardware()}
        record.facts["compute_dtype"] = config.compute_dtype
        train_rows = load_split(run.data, TRAIN)
        assert train_rows is not None
        layout = decide(source, config, train_rows, device, reporter, recorded.get("plan"))
        record.facts["plan"] = asdict(layout.plan)
        record.save_facts()
        if config.max_vram is not None and device.type == "cuda":
            hold_to(config.max_vram, device)
        reporter.note(f"loading {source.name} ({config.quantization}) on {device}")
        base = loading.load_base(source, device, compute_types.torch_type(config.compute_dtype), config.quantization)
        loading.keep_training_layout(base)
        if config.quantization != "none" and (notice := loading.dense_experts_notice(base)):
            reporter.warn(notice)
        checkpoints.forget_steps_after(run, checkpoint)
        try:
            result = fit(run, base, source.name, config, layout, checkpoint, reporter, profile)
        finally:
            checkpoints.remove_incomplete(run.checkpoints)
            record.resumable = checkpoints.last_complete(run.checkpoints) is not None
        record.outputs += ["adapter", "metrics.jsonl", "loss.svg"]
        record.facts["headline"] = asdict(result)
    return result


def base_model(recorded: Mapping[str, Any] | None, config: Config, reporter: Reporter) -> ModelSource:
    """The model that the settings name, or the very one that an interrupted training has recorded."""
    if recorded:
        return model_source.resolve_recorded(recorded, reporter)
    return model_source.resolve(config.model, reporter, revision=config.revision, trust_remote_code=config.trust_remote_code)


def fit(
    run: RunDir,
    base: PreTrainedModel,
    base_name: str,
    config: Config,
    layout: Layout,
    checkpoint: Path | None,
    reporter: Reporter,
    profile: bool = False,
) -> TrainResult:
    """Run the Trainer and leave adapter, figures and chart in the run."""
    from llmft_cli.training.loop.callbacks import Rehearsal
    from llmft_cli.training.profiling.profiling import profiled

    train_rows = load_split(run.data, TRAIN)
    assert train_rows is not None
    import_transformers().set_seed(config.seed)
    config = layout.applied_to(config)
    model = trainable_model(base, base_name, config, layout.plan, reporter)
    steps = schedule.plan(train_rows, config)
    trainer = trainer_of(run, model, train_rows, config, steps, reporter)
    rehearsal = Rehearsal(trainer, reporter)
    if base.device.type == "cuda":  # a CPU's memory swaps rather than fails, and the time is worth more
        trainer.add_callback(rehearsal)
    else:
        keep_freed_memory()
    warn_if_long_on_cpu(model, train_rows, config, steps, base.device, reporter)
    started = time.perf_counter()
    with profiled(profile, trainer, config, layout.plan, run.path / "profile", reporter) as found_profile:
        run_trainer(trainer, run, config, checkpoint, reporter)
    seconds = time.perf_counter() - started
    check_changes_something(model)
    with replacing_directory(run.adapter) as folder:
        save_adapter(model, folder)
    loss_chart.draw(run.metrics, run.loss_chart)
    plan = result.describe(config, base.device, layout)
    return result_of(run, trainer, plan, seconds, rehearsal.peak_bytes, found_profile())


def trainer_of(
    run: RunDir, model: PeftModel, train_rows: datasets.Dataset, config: Config, steps: Schedule, reporter: Reporter
) -> QLoRATrainer:
    from llmft_cli.training.loop.trainer import QLoRATrainer

    validation_rows = load_split(run.data, VALIDATION)
    arguments = schedule.training_arguments(run.checkpoints, steps, config, model.device, evaluate=validation_rows is not None)
    trainer = QLoRATrainer(
        group_by_length=not config.packing,
        tokens_per_batch=config.tokens_per_batch,
        reporter=reporter,
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        data_collator=collate,
    )
    trainer.clock.tokens = loss_chart.tokens_so_far(run.metrics)
    return trainer


def result_of(
    run: RunDir,
    trainer: QLoRATrainer,
    plan: dict[str, Any],
    seconds: float,
    rehearsal_peak_bytes: int | None,
    profile: Profile | None,
) -> TrainResult:
    from llmft_cli.training.fast.architectures import blocks_of, keeps_dequantized
    from llmft_cli.training.loop.callbacks import peak_memory_bytes

    model = trainer.model
    return TrainResult(
        steps=trainer.state.global_step,
        train_loss=trainer.mean_loss(),
        eval_loss=trainer.final_eval_loss(),
        best_step=trainer.state.best_global_step,
        tokens_per_second=trainer.clock.tokens_per_second,
        peak_memory_bytes=peak_memory_bytes(trainer.args.device),
        plan=plan | {"fast": bool(blocks_of(model)), "dequantized_weights": keeps_dequantized(model)},
        adapter=str(run.adapter),
        trainable_parameters=sum(weights.numel() for weights in model.parameters() if weights.requires_grad),
        seconds=seconds,
        out_of_memory_retries=trainer.passes.retries + trainer.evaluation_passes.retries,
        largest_pass_tokens=trainer.passes.largest,
        rehearsal_peak_bytes=rehearsal_peak_bytes,
        skipped_steps=None if trainer.loss_scale is None else trainer.loss_scale.skipped_steps,
        profile=profile,
    )


def trainable_model(base: PreTrainedModel, base_name: str, config: Config, plan: Plan, reporter: Reporter) -> PeftModel:
    """The base with a fresh adapter, laid out by the plan."""
    from llmft_cli.training.step.row_separation import settle_attention, settle_rows
    from llmft_cli.training.step.tuned_model import has_room_for_dequantized_weights, laid_out, why_plain_layers

    own_attention = base.config._attn_implementation
    kept = plan.dequantized_weights or has_room_for_dequantized_weights(base)
    model = laid_out(base, config, base_name, replace(plan, dequantized_weights=kept))
    plain = why_plain_layers(model, config)
    if plain is not None:
        reporter.note(f"layers are computed by PEFT's own modules, not the fast ones: {plain}")
    settle_attention(model, own_attention)
    if not settle_rows(model):
        reporter.note("this model mixes packed rows: running each row separately")
    return model


def warn_if_long_on_cpu(
    model: PeftModel, rows: datasets.Dataset, config: Config, steps: Schedule, device: torch.device, reporter: Reporter
) -> None:
    tokens = schedule.training_tokens(rows, config)
    less = f"use a GPU, a smaller --model, or fewer steps than {steps.total:,} (--max-steps)"
    warn_if_long("training", model, tokens, TRAINING, device, config.compute_dtype, less, reporter)


def run_trainer(trainer: QLoRATrainer, run: RunDir, config: Config, checkpoint: Path | None, reporter: Reporter) -> None:
    """Train with our callbacks, stopping with a checkpoint when asked to.

    Raises:
        Interrupted: the user or the system asked to stop.
        OutOfMemory: a single row takes too much.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback

    from llmft_cli.training.loop.callbacks import Figures, StopRequest, StopWhenAsked
    from llmft_cli.training.loop.expected_end import ExpectedEnd
    from llmft_cli.training.loop.out_of_memory import leaving_a_checkpoint

    stop = StopRequest(reporter)
    done = checkpoints.step_of(checkpoint) if checkpoint else 0
    total = trainer.args.max_steps
    tracked: AbstractContextManager[None] = nullcontext()
    if config.report_to == "wandb":
        tracked = wandb_run(run.path, config.wandb_project, run.path.name, settings.of_command(config, "train"), reporter)
    with tracked, stop.listening(), reporter.track("training", total=total, done=done) as advance:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Figures(run.metrics, trainer.clock, reporter, advance, trainer.loss_scale))
        held_out_tokens = sum(sequence_lengths(trainer.eval_dataset)) if trainer.eval_dataset is not None else 0
        trainer.add_callback(ExpectedEnd(trainer.clock, held_out_tokens, reporter))
        trainer.add_callback(StopWhenAsked(stop))
        if config.early_stopping_patience and trainer.eval_dataset is not None:
            trainer.add_callback(EarlyStoppingCallback(config.early_stopping_patience))
        if checkpoint and done >= total:
            trainer.restore_end(checkpoint)
        else:
            with leaving_a_checkpoint(trainer, run, config):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.loss_scale is not None and (skipped := trainer.loss_scale.skipped_steps):
        reporter.note(f"{skipped} steps were skipped, as their gradients overflowed fp16; the loss scale was lowered for each")
    if stop.made and trainer.state.global_step < total:
        raise Interrupted(
            f"stopped after step {trainer.state.global_step} of {total}", f"go on with: llmft train {run.path} --resume"
        )
