"""The speed of a training, without its pauses."""

from __future__ import annotations

import time

import pytest
import torch

from llmft_cli.training.trainer import StepClock


def test_only_pauses_between_the_measured_steps_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation after the last step was, too: a training of six steps told -110 tokens/s."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock(torch.device("cpu"))

    def step(seconds: float) -> None:
        clock.add_tokens(100)
        now[0] += seconds
        clock.step_ended()

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
