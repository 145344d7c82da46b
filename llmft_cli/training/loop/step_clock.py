"""Training speed in tokens per second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

UNTIMED_STEPS = 2
READINGS = 2  # a step is logged after the next one has ended at the latest


@dataclass(frozen=True)
class Reading:
    """The clock at the end of a step.

    Attributes:
        step: the step's number.
        tokens: of all steps so far.
        timed_steps, timed_tokens: those that are timed.
        moment: a time or, on a GPU, a CUDA event.
        pauses: seconds since timing started that do not count.
    """

    step: int
    tokens: int
    timed_steps: int
    timed_tokens: int
    moment: Any
    pauses: float


class StepClock:
    """Tokens per second over the steps after the first two, without evaluations and checkpoints.

    On a GPU, time is measured there by events, because the GPU may be several steps behind the host.

    Attributes:
        tokens: processed so far, including those before resuming.
    """

    def __init__(self, device: torch.device) -> None:
        self.tokens = 0
        self._on_gpu = device.type == "cuda"
        self._steps = 0
        self._timed_tokens = 0
        self._started: Any = None
        self._pauses = 0.0
        self._readings: deque[Reading] = deque(maxlen=READINGS)

    def add_tokens(self, count: int) -> None:
        self.tokens += count
        if self._steps >= UNTIMED_STEPS:
            self._timed_tokens += count

    def step_ended(self, step: int) -> None:
        """Call this at the end of each step, with its number in the whole training run."""
        self._steps += 1
        moment = self._moment()
        if self._steps == UNTIMED_STEPS:
            self._started = moment
            self._pauses = 0.0
        timed_steps = max(0, self._steps - UNTIMED_STEPS)
        self._readings.append(Reading(step, self.tokens, timed_steps, self._timed_tokens, moment, self._pauses))

    def _moment(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def paused(self) -> Iterator[None]:
        if self._on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        if self._on_gpu:
            torch.cuda.synchronize()
        self._pauses += time.perf_counter() - start

    def at(self, step: int) -> Reading | None:
        """The reading at the end of one of the last steps."""
        return next((reading for reading in self._readings if reading.step == step), None)

    @property
    def tokens_per_second(self) -> float | None:
        """Up to the last step; None after too few steps. Waits for the GPU."""
        return self.speed_until(self._readings[-1]) if self._readings else None

    def speed_until(self, reading: Reading) -> float | None:
        """Tokens per second up to the end of a step; None after too few steps. Waits for the GPU to finish the step."""
        if self._started is None or reading.timed_tokens == 0:
            return None
        if not self._on_gpu:
            return reading.timed_tokens / (reading.moment - self._started - reading.pauses)
        reading.moment.synchronize()
        seconds: float = self._started.elapsed_time(reading.moment) / 1000
        return reading.timed_tokens / (seconds - reading.pauses)
