"""The expected end of a training run, reported once its speed is known."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmft_cli.base.reporter import Reporter
from llmft_cli.models.expected_time import TRAINING, warn_if_long
from llmft_cli.settings.config import Config
from llmft_cli.settings.quantities import format_duration
from llmft_cli.training.loop import schedule
from llmft_cli.training.loop.step_clock import Reading, StepClock

if TYPE_CHECKING:
    from llmft_cli.training.loop.trainer import QLoRATrainer

FIRST_TIMED_STEPS = 3
SHORTEST_SECONDS = 60
FORWARD_SPEED = 2  # evaluation relative to training with a frozen base: forward passes only


class ExpectedEnd(TrainerCallback):
    """Reports the expected end after a few steps, if it is at least a minute away."""

    def __init__(self, clock: StepClock, held_out_tokens: int, reporter: Reporter) -> None:
        self._clock = clock
        self._held_out_tokens = held_out_tokens
        self._reporter = reporter
        self._shown = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        reading = self._clock.at(state.global_step)
        if self._shown or reading is None or reading.timed_steps < FIRST_TIMED_STEPS:
            return
        speed = self._clock.speed_until(reading)
        if speed is None:
            return
        self._shown = True
        seconds = self._seconds_left(args, state, reading, speed)
        if seconds >= SHORTEST_SECONDS:
            self._reporter.note(f"{speed:,.0f} tokens/s: {format_end(seconds, datetime.fromtimestamp(time.time()))}")

    def _seconds_left(self, args: TrainingArguments, state: TrainerState, reading: Reading, speed: float) -> float:
        steps = state.max_steps - state.global_step
        tokens = steps * reading.timed_tokens / reading.timed_steps
        evaluations = -(-steps // int(args.eval_steps or 1)) if args.eval_strategy != "no" else 0
        return (tokens + evaluations * self._held_out_tokens / FORWARD_SPEED) / speed


def format_end(seconds: float, now: datetime) -> str:
    """`done at about 14:32, in 1h5m`, with the day if it is not today."""
    end = now + timedelta(seconds=seconds)
    day = "" if end.date() == now.date() else end.strftime(" on %d %B")
    return f"done at about {end.strftime('%H:%M')}{day}, in {format_duration(round(seconds / 60) * 60)}"


def warn_if_long_on_cpu(trainer: QLoRATrainer, config: Config, reporter: Reporter) -> None:
    tokens = schedule.training_tokens(trainer.train_dataset, config)
    less = f"use a GPU, a smaller --model, or fewer steps than {trainer.args.max_steps:,} (--max-steps)"
    warn_if_long("training", trainer.model, tokens, TRAINING, trainer.args.device, config.compute_dtype, less, reporter)
