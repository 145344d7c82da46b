"""Profile of a few training steps with torch's profiler: seconds by groups of kernels, compared with the roofline."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmft_cli.base.errors import first_line
from llmft_cli.base.files import replacing_directory
from llmft_cli.base.reporter import Reporter
from llmft_cli.settings.config import Config
from llmft_cli.training.profiling.kernel_groups import groups, timed_events
from llmft_cli.training.profiling.roofline import Roofline, rates_or_why_none, roofline_or_why_none

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch
    from llmft_cli.training.loop.trainer import QLoRATrainer
    from llmft_cli.training.plan import Plan

# The first pass of a shape compiles kernels, the second captures a CUDA graph.
WARMUP_STEPS = 3
PROFILED_STEPS = 2
TRACE = "trace.json.gz"


@dataclass(frozen=True)
class Profile:
    """The profile of some optimizer steps; times are seconds per step.

    Attributes:
        first_step: the first profiled step, counted from 1.
        busy_share: fraction of the step's time in which the device (on a CPU, torch's operators) was computing.
        group_seconds: the computing time by groups of kernels.
        why_no_roofline: the reason if there is none.
        trace: file for Perfetto or chrome://tracing.
    """

    first_step: int
    steps: int
    device: str
    step_seconds: float
    busy_share: float
    group_seconds: dict[str, float]
    roofline: Roofline | None
    why_no_roofline: str | None
    trace: str


def steps_before(done: int, total: int, saved_every: int) -> int | None:
    """The number of finished optimizer steps when profiling starts; None if there are too few steps.

    Args:
        done: steps finished before resuming.
        saved_every: steps between evaluations and checkpoints, which discard CUDA graphs and take time.
    """
    if total - done < 2:
        return None
    if total - done < WARMUP_STEPS + PROFILED_STEPS:
        return done + 1
    starts = range(done + WARMUP_STEPS, total - PROFILED_STEPS + 1)
    return next((step for step in starts if step % saved_every and (step + 1) % saved_every), starts[0])


class ProfiledSteps(TrainerCallback):
    """Profiles two steps, or one if an evaluation follows it, and writes the result immediately.

    A failure gives a warning, and training continues.

    Attributes:
        profile: the result; None before, or if it failed.
    """

    def __init__(self, trainer: QLoRATrainer, config: Config, plan: Plan, folder: Path, reporter: Reporter) -> None:
        self.profile: Profile | None = None
        self._trainer, self._config, self._plan = trainer, config, plan
        self._folder, self._reporter = folder, reporter
        self._device: torch.device = trainer.args.device
        self._rates = rates_or_why_none(config, self._device)
        self._begin: int | None = None
        self._profiler: Any = None
        self._batches: list[Batch] = []
        self._steps, self._started = 0, 0.0

    @contextmanager
    def _warning_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._reporter.warn(f"no profile: {first_line(error)}")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._begin = steps_before(state.global_step, state.max_steps, int(args.save_steps))
        if self._begin is None:
            self._reporter.warn("no profile: too few steps; at least two are needed, because the first is not profiled")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self._begin:
            self._begin = None
            with self._warning_on_failure():
                activities = [torch.profiler.ProfilerActivity.CPU]
                if self._device.type == "cuda":
                    activities.append(torch.profiler.ProfilerActivity.CUDA)
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences its messages on stderr
                profiler = torch.profiler.profile(activities=activities)
                with self._trainer.clock.paused():
                    profiler.start()
                self._profiler, self._started = profiler, time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._profiler is None:
            return
        self._steps += 1
        assert self._trainer.current_step is not None
        self._batches += self._trainer.current_step.batches
        interrupted = control.should_evaluate or control.should_save or control.should_training_stop
        if self._steps == PROFILED_STEPS or interrupted or state.global_step >= state.max_steps:
            with self._warning_on_failure(), self._trainer.clock.paused():
                seconds = (time.perf_counter() - self._started) / self._steps
                self._write(self.close(), state.global_step - self._steps + 1, seconds)

    def close(self) -> Any:
        """Stop profiling, also after a failed training run; returns the profiler with its events."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
        return profiler

    def _write(self, profiler: Any, first_step: int, step_seconds: float) -> None:
        """Write trace and summary to the folder."""
        found = groups(timed_events(profiler.events(), self._device.type == "cuda"))
        by_step = {group: seconds / self._steps for group, seconds in found.items()}
        roofline = self._roofline()
        profile = Profile(
            first_step=first_step,
            steps=self._steps,
            device=str(self._device),
            step_seconds=step_seconds,
            busy_share=sum(by_step.values()) / step_seconds,
            group_seconds=by_step,
            roofline=None if isinstance(roofline, str) else roofline,
            why_no_roofline=roofline if isinstance(roofline, str) else None,
            trace=str(self._folder / TRACE),
        )
        with replacing_directory(self._folder) as folder:
            profiler.export_chrome_trace(str(folder / TRACE))
            (folder / "summary.json").write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")
        self.profile, self._batches = profile, []

    def _roofline(self) -> Roofline | str:
        if isinstance(self._rates, str):
            return self._rates
        return roofline_or_why_none(self._trainer.model, self._config, self._plan, self._batches, self._steps, self._rates)


@contextmanager
def profiled(
    wanted: bool, trainer: QLoRATrainer, config: Config, plan: Plan, folder: Path, reporter: Reporter
) -> Iterator[Callable[[], Profile | None]]:
    """Profile steps of the training inside the block if `wanted`; yields a function that returns the profile afterwards."""
    if not wanted:
        yield lambda: None
        return
    callback = ProfiledSteps(trainer, config, plan, folder, reporter)
    trainer.add_callback(callback)
    try:
        yield lambda: callback.profile
    finally:
        callback.close()
