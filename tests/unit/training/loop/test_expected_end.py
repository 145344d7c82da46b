"""A training says, once, when it will be done."""

from __future__ import annotations

import time
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch

from llmft_cli.base.reporter import Silent
from llmft_cli.training.loop.expected_end import ExpectedEnd, format_end
from llmft_cli.training.loop.step_clock import StepClock


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def notes_of(
    monkeypatch: pytest.MonkeyPatch, seconds_of_a_step: float, steps: int, evaluations: bool = True
) -> list[tuple[int, str]]:
    """What a training of 100 steps of 200 tokens says, and after which step; it is evaluated on 1,000 tokens every 25."""
    now = [datetime(2026, 3, 1, 12, 0).timestamp()]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    clock, notes, found = StepClock(torch.device("cpu")), Notes(), []
    callback = ExpectedEnd(clock, 1000, notes)
    arguments = SimpleNamespace(eval_strategy="steps" if evaluations else "no", eval_steps=25)
    for step in range(1, steps + 1):
        clock.add_tokens(200)
        now[0] += seconds_of_a_step
        clock.step_ended(step)
        callback.on_log(arguments, SimpleNamespace(global_step=step, max_steps=100), None)  # type: ignore[arg-type]
        found += [(step, note) for note in notes.said]
        notes.said.clear()
    return found


def test_it_is_said_once_after_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # After 5 steps, 95 of 10 s and 4 evaluations of 1,000 tokens at 40 tokens/s are left, 1,050 s: until 12:18:20.
    assert notes_of(monkeypatch, 10, 20) == [(5, "20 tokens/s: done at about 12:18, in 18m")]
    # Without evaluations 950 s.
    assert notes_of(monkeypatch, 10, 20, evaluations=False) == [(5, "20 tokens/s: done at about 12:16, in 16m")]


def test_a_short_training_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notes_of(monkeypatch, 0.5, 20) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (90, "done at about 12:01, in 2m"),
        (2 * 3600 + 95, "done at about 14:01, in 2h2m"),
        (86400 + 7200, "done at about 14:00 on 02 March, in 1d2h"),
    ],
)
def test_the_day_is_told_where_it_is_another(seconds: float, expected: str) -> None:
    assert format_end(seconds, datetime(2026, 3, 1, 12, 0)) == expected
