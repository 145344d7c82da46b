"""How fast a training is: tokens per second of its steps."""

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
        step: which one.
        tokens: of all steps until then.
        timed_steps, timed_tokens: of those that are timed.
        moment: when it was; a GPU comes to it later.
        pauses: seconds since timing began that do not count.
    """

    step: int
    tokens: int
    timed_steps: int
    timed_tokens: int
    moment: Any
    pauses: float


class StepClock:
    """Tokens per second over the steps after the first two, without evaluating and saving.

    Measured where the work is done: a GPU may be several steps behind what it was told to do.

    Attributes:
        tokens: those that went through, of earlier trainings that this one resumes as well.
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
        """To be told at the end of each step, by its number in the whole training."""
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
        """Up to the last step; None where too few are done. The GPU is waited for."""
        return self.speed_until(self._readings[-1]) if self._readings else None

    def speed_until(self, reading: Reading) -> float | None:
        """Tokens per second up to the end of a step, which a GPU is waited for to come to; None where too few were done."""
        if self._started is None or reading.timed_tokens == 0:
            return None
        if not self._on_gpu:
            return reading.timed_tokens / (reading.moment - self._started - reading.pauses)
        reading.moment.synchronize()
        seconds: float = self._started.elapsed_time(reading.moment) / 1000
        return reading.timed_tokens / (seconds - reading.pauses)
