"""The number of steps, warm-up and evaluations of a training run, and Trainer's arguments for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.recipe.settle import counts_rows
from llmft_cli.settings.compute_types import torch_type
from llmft_cli.settings.config import Config
from llmft_cli.training.batches.token_batches import token_batches

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from llmft_cli.training.batches.sequences import Sequences


@dataclass(frozen=True)
class Schedule:
    """In optimizer steps: total, warm-up, and interval between evaluations."""

    total: int
    warmup: int
    evaluate_every: int


def plan(sequences: Sequences, config: Config) -> Schedule:
    """The schedule for these training sequences: a warm-up never has all steps; an interval above all steps is all steps."""
    total = config.max_steps or math.ceil(steps_per_epoch(sequences, config) * config.num_epochs)
    every = config.eval_steps if config.eval_steps >= 1 else config.eval_steps * total
    warmup = min(math.ceil(config.warmup_ratio * total), total - 1)
    return Schedule(total, warmup, min(math.ceil(every), total))


def steps_per_epoch(sequences: Sequences, config: Config) -> int:
    if sequences.passes is not None:
        return len(sequences) // sequences.passes
    if config.tokens_per_batch is None:
        batches = math.ceil(len(sequences) / config.batch_size)
    else:
        batches = len(token_batches(sequences.lengths.tolist(), config.tokens_per_batch))
    return math.ceil(batches / config.gradient_accumulation_steps)


def training_tokens(sequences: Sequences, config: Config) -> int:
    """Tokens processed in the whole training run."""
    if config.max_steps is None:
        return int(sequences.tokens * config.num_epochs)
    return int(sequences.tokens / steps_per_epoch(sequences, config) * config.max_steps)


def training_arguments(
    folder: Path, steps: Schedule, config: Config, device: torch.device, evaluate: bool
) -> TrainingArguments:
    """The config, with its compute type resolved, as Trainer's arguments; checkpoints go to `folder`."""
    from transformers import TrainingArguments

    on_gpu = device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps.total,
        warmup_steps=steps.warmup,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        per_device_train_batch_size=1 if counts_rows(config) and config.packing else config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},  # blocking copies would leave the GPU idle after each step
        seed=config.seed,
        save_strategy="steps",
        save_steps=steps.evaluate_every,
        save_total_limit=None,  # the trainer removes surplus checkpoints itself
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # it would log NaN losses as 0
        report_to=[],  # `tracking` adds the callbacks
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        log_level="error",
        **autocast_arguments(config),
        **evaluation_arguments(config, steps, evaluate),
    )
    if arguments.n_gpu > 1:
        # The model is on one GPU; Trainer would otherwise replicate it on every GPU it sees.
        arguments._n_gpu = 1
    return arguments


def rates(arguments: TrainingArguments, optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rates of all steps, none of them 0.

    transformers' schedules begin with a rate of 0, so theirs of one more step is used, without its first.
    """
    import torch
    from transformers import get_scheduler

    # A schedule sets the rate of its optimizer.
    other = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warmup = arguments.get_warmup_steps(total) + 1
    longer = get_scheduler(arguments.lr_scheduler_type, other, num_warmup_steps=warmup, num_training_steps=total + 1)
    factor = longer.lr_lambdas[0]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step + 1))


def autocast_arguments(config: Config) -> dict[str, Any]:
    """Autocast, in fp16 with Trainer's loss scaling; without autocast, fp16 has its own (`loss_scale`)."""
    import torch

    from llmft_cli.training.step.tuned_model import computes_in_base_type

    dtype, autocast = torch_type(config.compute_dtype), not computes_in_base_type(config)
    return {"bf16": dtype == torch.bfloat16 and autocast, "fp16": dtype == torch.float16 and autocast}


def evaluation_arguments(config: Config, steps: Schedule, evaluate: bool) -> dict[str, Any]:
    return {
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": steps.evaluate_every,
        "load_best_model_at_end": evaluate and (config.load_best_model_at_end or config.early_stopping_patience > 0),
        "metric_for_best_model": "eval_loss" if evaluate else None,
        "greater_is_better": False if evaluate else None,
    }
