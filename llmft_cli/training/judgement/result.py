"""What a training run reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.compute_types import TORCH_NAMES
from llmft_cli.settings.config import Config
from llmft_cli.training.judgement.advice import Advice, advise
from llmft_cli.training.judgement.facts import facts_of

if TYPE_CHECKING:
    import torch
    from transformers import TrainerState

    from llmft_cli.training.loop.trainer import QLoRATrainer
    from llmft_cli.training.planning.decide import ChosenPlan
    from llmft_cli.training.profiling.profiling import Profile


@dataclass(frozen=True)
class TrainResult:
    """What `train --json` prints; losses are nats per supervised token.

    Attributes:
        eval_loss: held-out loss of the adapter that was kept; None without held-out rows.
        best_step: step of the evaluation whose adapter was kept; None if that of the last step was.
        base_eval_loss: held-out loss of the base model, measured before the first step; None if it was not, or if the
            training began with an adapter.
        starting_adapter_eval_loss: held-out loss of the adapter that the training began with; None for a new one.
        advice: what these figures say; empty if there is nothing to mend.
        tokens_per_second: after the first two steps, without evaluating and saving; None for too few steps.
        peak_memory_bytes: peak GPU memory that torch allocated; on a CPU, the peak RAM of the process.
        out_of_memory_retries: how often memory ran out and a batch was split into smaller passes.
        largest_pass_tokens: most tokens per pass at the end, padding included; None if whole batches fit.
        rehearsal_peak_bytes: peak GPU memory while the longest batch was tried first; None without a GPU.
        skipped_steps: steps whose gradients overflowed fp16, since the training was started or resumed; None for other types.
        search: of `train --search`, what its recipes are compared by, and each of them, the best first; None without it.
        timings: wall seconds by stage, from the start of the process; together they are its whole time.
    """

    steps: int
    train_loss: float
    eval_loss: float | None
    best_step: int | None
    tokens_per_second: float | None
    peak_memory_bytes: int
    plan: dict[str, Any]
    adapter: str
    trainable_parameters: int
    seconds: float
    out_of_memory_retries: int
    largest_pass_tokens: int | None
    rehearsal_peak_bytes: int | None
    skipped_steps: int | None = None
    profile: Profile | None = None
    timings: dict[str, float] | None = None
    base_eval_loss: float | None = None
    starting_adapter_eval_loss: float | None = None
    advice: list[Advice] = field(default_factory=list)
    search: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a training run went; attributes as in `TrainResult`."""

    seconds: float
    rehearsal_peak_bytes: int | None
    profile: Profile | None = None


def result_of(
    run: RunDir,
    trainer: QLoRATrainer,
    config: Config,
    chosen: ChosenPlan,
    outcome: Outcome,
    inputs: Mapping[str, str],
) -> TrainResult:
    """What a finished training run reports; `inputs` is what the ledger records as read by it.

    Raises:
        VerificationError: the loss is not a number.
    """
    from llmft_cli.training.fast.architectures import blocks_of, keeps_dequantized
    from llmft_cli.training.loop.callbacks import peak_memory_bytes

    model, device = trainer.model, trainer.args.device
    plan = describe(config, device, chosen)
    facts = facts_of(run, trainer, config, inputs)
    start = facts.curve.start
    return TrainResult(
        steps=trainer.state.global_step,
        train_loss=mean_loss(trainer.state),
        eval_loss=kept_eval_loss(trainer),
        best_step=trainer.kept_evaluation,
        tokens_per_second=trainer.clock.tokens_per_second,
        peak_memory_bytes=peak_memory_bytes(device),
        plan=plan | {"fast": bool(blocks_of(model)), "dequantized_weights": keeps_dequantized(model)},
        adapter=str(run.adapter),
        trainable_parameters=sum(weights.numel() for weights in model.parameters() if weights.requires_grad),
        seconds=outcome.seconds,
        out_of_memory_retries=trainer.passes.retries + (trainer.evaluation.passes.retries if trainer.evaluation else 0),
        largest_pass_tokens=trainer.passes.largest,
        rehearsal_peak_bytes=outcome.rehearsal_peak_bytes,
        skipped_steps=None if trainer.loss_scale is None else trainer.loss_scale.skipped_steps,
        profile=outcome.profile,
        timings=trainer.times.seconds,
        base_eval_loss=start if facts.starting_adapter is None else None,
        starting_adapter_eval_loss=start if facts.starting_adapter is not None else None,
        advice=advise(facts),
    )


def mean_loss(state: TrainerState) -> float:
    """Mean training loss over all steps, including those before resuming, without non-finite ones (fp16)."""
    total, counted, last = 0.0, 0, 0
    for row in state.log_history:
        if "loss" in row:
            if math.isfinite(row["loss"]):
                total += row["loss"] * (row["step"] - last)
                counted += row["step"] - last
            last = row["step"]
    return total / counted if counted else math.nan


def kept_eval_loss(trainer: QLoRATrainer) -> float | None:
    """Held-out loss of the adapter that is kept, or None without an evaluation."""
    if trainer.kept_evaluation is not None:
        return trainer.state.best_metric
    losses: list[float] = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    return losses[-1] if losses else None


def describe(config: Config, device: torch.device, chosen: ChosenPlan) -> dict[str, Any]:
    """How the training was set up, and its predicted memory, for the result and the run directory."""
    predicted = chosen.predicted
    return {
        "device": str(device),
        "quantization": config.quantization,
        "compute_dtype": TORCH_NAMES[config.compute_dtype],
        "rows_per_step": config.rows_per_step,
        "batch_size": config.batch_size,
        "tokens_per_batch": config.tokens_per_batch,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_seq_length": config.max_seq_length,
        "packing": config.packing,
        "gradient_checkpointing": chosen.plan.checkpointed_layers > 0,
        "checkpointed_layers": chosen.plan.checkpointed_layers,
        "optim": config.optim,
        "embeddings_on_cpu": chosen.plan.embeddings_on_cpu,
        "dequantized_weights": chosen.plan.dequantized_weights,
        "activation_offloading": chosen.plan.activation_offloading,
        "predicted_peak_bytes": predicted and predicted.breakdown.total,
        "required_bytes": predicted and predicted.required_bytes,
    }
