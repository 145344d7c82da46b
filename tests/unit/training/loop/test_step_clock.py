"""The speed of a training, without its pauses."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from llmft_cli.training.loop.step_clock import StepClock


def test_only_pauses_between_the_measured_steps_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation after the last step was once counted: a training of six steps reported -110 tokens/s."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock(torch.device("cpu"))
    steps = itertools.count(1)

    def step(seconds: float) -> None:
        clock.add_tokens(100)
        now[0] += seconds
        clock.step_ended(next(steps))

    def pause(seconds: float) -> None:
        with clock.paused():
            now[0] += seconds

    step(50)
    pause(20)
    step(50)
    assert clock.tokens_per_second is None
    pause(5)
    step(2)
    pause(1000)
    assert clock.tokens_per_second == pytest.approx(50)
    step(8)
    pause(1000)
    assert clock.tokens_per_second == pytest.approx(20)


def test_of_a_step_that_is_logged_late_the_clock_tells_what_it_did_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock(torch.device("cpu"))
    clock.tokens = 1000  # of a training that is resumed
    for step in range(7, 12):
        clock.add_tokens(100)
        now[0] += step
        clock.step_ended(step)
    late, last = clock.at(10), clock.at(11)
    assert late is not None
    assert last is not None
    assert (late.tokens, last.tokens) == (1400, 1500)
    assert clock.speed_until(late) == pytest.approx(200 / (9 + 10))
    assert clock.speed_until(last) == clock.tokens_per_second == pytest.approx(300 / (9 + 10 + 11))
    assert clock.at(9) is None
