"""Trainer callbacks: trying the longest batch, metrics.jsonl and progress, and stopping on request."""

from __future__ import annotations

import json
import math
import resource
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmft_cli.base.errors import VerificationError
from llmft_cli.base.reporter import Advance, Reporter
from llmft_cli.base.stage_times import StageTimes
from llmft_cli.training.batches.largest import longest_batch
from llmft_cli.training.loop.loss_scale import LossScale
from llmft_cli.training.loop.rehearsal import rehearse
from llmft_cli.training.loop.smaller_passes import GIBIBYTE
from llmft_cli.training.loop.step_clock import StepClock
from llmft_cli.training.loop.trainer import QLoRATrainer

STOPPING = "stopping after this step with a checkpoint (Ctrl-C again: stop immediately without one)"
FIGURES = ("loss", "eval_loss", "learning_rate", "grad_norm")
UNTRAINED_HINT = "the model that training begins with is damaged, or needs another --compute-dtype (bf16, fp32)"
FP16_HINT = "start over with --overwrite and --compute-dtype bf16 (fp32 if the GPU has no bf16), or a lower --learning-rate"


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: allocated by torch on the GPU, or on a CPU the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class StopRequest:
    """Set by the first Ctrl-C, SIGTERM or SIGHUP; a second Ctrl-C or SIGTERM ends the process immediately.

    Attributes:
        made: whether anybody asked to stop.
        pause_after: the step after which training stops without that, to be resumed later; None trains to the end.
    """

    def __init__(self, reporter: Reporter, pause_after: int | None = None) -> None:
        self.made = False
        self.pause_after = pause_after
        self._reporter = reporter

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            # A terminal that is closed sends SIGHUP several times: from its shell, and from the system.
            if number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        self.made = True
        # The signal may have interrupted a print, so print from another thread.
        threading.Thread(target=self._reporter.warn, args=[STOPPING]).start()

    @contextmanager
    def listening(self) -> Iterator[None]:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # `nohup` ignores it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class FirstStep(TrainerCallback):
    """Tells the stages' clock when the first step has ended; on a GPU, waits for it."""

    def __init__(self, times: StageTimes) -> None:
        self._times: StageTimes | None = times

    def on_step_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        if self._times is None:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self._times.enter("steps")
        self._times = None


class StopWhenAsked(TrainerCallback):
    """Stops training with a checkpoint after the step of the request; also evaluates and saves the last step."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"
        elif self._stop.made:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = args.load_best_model_at_end = False
        elif self._stop.pause_after is not None and state.global_step >= self._stop.pause_after:
            control.should_save = control.should_training_stop = True  # an evaluation that is due is made
            args.load_best_model_at_end = False
        # Log before saving, so that the checkpoint's log history is complete for resuming.
        control.should_log = control.should_log or control.should_save


class Rehearsal(TrainerCallback):
    """Tries the longest batch before the first step; it does not affect training.

    Attributes:
        peak_bytes: the peak of torch's reserved GPU memory; None on a CPU, or before.
    """

    def __init__(self, trainer: QLoRATrainer, reporter: Reporter) -> None:
        self.peak_bytes: int | None = None
        self._trainer = trainer
        self._reporter = reporter

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        batch = longest_batch(self._trainer.train_dataset, args.train_batch_size, self._trainer.tokens_per_batch)
        self.peak_bytes = rehearse(self._trainer, batch)
        sequences, tokens = batch["input_ids"].shape
        peak = "" if self.peak_bytes is None else f": peak {self.peak_bytes / GIBIBYTE:.1f} GiB"
        self._reporter.note(f"longest batch ({sequences} x {tokens:,} tokens) fits{peak}")


class Figures(TrainerCallback):
    """Writes every logged step to metrics.jsonl and shows it."""

    def __init__(
        self, file: Path, clock: StepClock, reporter: Reporter, advance: Advance, loss_scale: LossScale | None = None
    ) -> None:
        self._loss_scale = loss_scale
        self._file = file
        self._clock = clock
        self._reporter = reporter
        self._advance = advance

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._clock.step_ended(state.global_step)
        self._advance(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items() if name in FIGURES}
        if not figures:
            return
        if self._loss_scale is None:
            check_finite(figures, state.global_step)
        else:
            self._check_fp16(figures, state.global_step, self._loss_scale)
        row: dict[str, float | int | None] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        row |= {name: value if math.isfinite(value) else None for name, value in figures.items()}
        if "eval_loss" in figures:
            when = f"step {state.global_step}" if state.global_step else "before training"
            self._reporter.note(f"{when}: held-out loss {figures['eval_loss']:.4f}")
        else:
            reading = self._clock.at(state.global_step)
            speed = None if reading is None else self._clock.speed_until(reading)
            row |= {
                "tokens_per_second": speed and round(speed, 1),
                "peak_memory_bytes": peak_memory_bytes(args.device),
                "tokens": self._clock.tokens if reading is None else reading.tokens,
            }
            self._advance(
                0, **{name: row[name] for name in ("loss", "learning_rate", "tokens_per_second", "peak_memory_bytes")}
            )
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _check_fp16(self, figures: Mapping[str, float], step: int, loss_scale: LossScale) -> None:
        """Like `check_finite`, but a single overflow is tolerated: its step was skipped.

        Raises:
            VerificationError: a smaller loss scale would not help, or the held-out loss is not finite.
        """
        overflowed = [name for name, value in figures.items() if not math.isfinite(value)]
        if "eval_loss" in overflowed or (overflowed and loss_scale.is_too_small):
            raise VerificationError(
                f"activations or gradients overflow fp16 at step {step}, whatever the loss scale", FP16_HINT
            )
        if "loss" in overflowed:
            self._reporter.warn(f"step {step}: activations overflowed fp16 and the loss is not finite; the step was skipped")


def check_finite(figures: Mapping[str, float], step: int) -> None:
    """Stop a diverged training before it is saved.

    Gradient norms are not checked: in fp16 under autocast, one may be infinite for a step.

    Raises:
        VerificationError: a loss is not finite.
    """
    for name, label in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        if name in figures and not math.isfinite(figures[name]):
            if step == 0:
                raise VerificationError(f"the {label} is {figures[name]} before the first step", UNTRAINED_HINT)
            raise VerificationError(
                f"the {label} is {figures[name]} at step {step}", "start over with a lower --learning-rate and --overwrite"
            )
