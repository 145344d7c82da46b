"""Predicted step times against an H100's, and how they depend on a step's work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.training.planning.simulation import Step
from llmft_cli.training.planning.speed import LAUNCH_SECONDS, REFERENCE_RATES, Rates, step_seconds

from ..meta_models import predicted, predicted_fast, recorded, recorded_fast
from .test_memory import QUICK_CASES, QUICK_RECORDED_CASES

WORK = ("product_flops", "attention_flops", "moved_bytes", "kernels")
STEPS = st.builds(
    Step,
    *[st.integers(0, 10**11)] * 4,
    product_flops=st.integers(0, 10**16),
    attention_flops=st.integers(0, 10**16),
    moved_bytes=st.integers(0, 10**14),
    kernels=st.integers(1, 10**5),
)
RATES = st.builds(Rates, st.floats(1e12, 1e16), st.floats(1e10, 1e13))


@pytest.mark.slow
def test_plain_steps_take_about_as_long_as_the_h100_needed() -> None:
    """Most are within 10%, and none is so wrong that another plan would seem faster by half."""
    ratios = []
    for number in QUICK_CASES:
        case = recorded()[number]
        seconds = step_seconds(predicted(number)[1], REFERENCE_RATES, packed=case["rows"] > 1, recorded=False)
        ratios.append(seconds / case["measured"]["step_seconds"])
    assert sum(abs(ratio - 1) <= 0.1 for ratio in ratios) >= 0.8 * len(ratios)
    assert all(2 / 3 < ratio < 3 / 2 for ratio in ratios)


@pytest.mark.slow
@pytest.mark.parametrize("number", QUICK_RECORDED_CASES)
def test_recorded_steps_take_as_long_as_the_h100_needed(number: int) -> None:
    """Within 10%; the time of a paged optimizer is not predicted."""
    case = recorded_fast()[number]
    paged = case["optim"] == "paged_adamw_8bit"
    measured = case["sequences"] * case["length"] / case["measured"]["step_seconds"]
    assert predicted_fast(number).tokens_per_second == pytest.approx(measured, rel=0.2 if paged else 0.1)


def test_what_a_step_takes_by_hand() -> None:
    """A second of products at 91.1% of the rate, of attention at 72.4% or 44% of it, and of moving at 78% of the bandwidth."""
    rates = Rates(1e12, 1e9)
    step = Step(0, 0, 0, 0, 911 * 10**9, 724 * 10**9, 780 * 10**6, 10)
    assert step_seconds(step, rates, packed=False, recorded=False) == pytest.approx(3)
    packed = replace(step, attention_flops=440 * 10**9)
    assert step_seconds(packed, rates, packed=True, recorded=False) == pytest.approx(3)
    launched = replace(step, kernels=100_000)
    assert step_seconds(launched, rates, packed=False, recorded=False) == pytest.approx(8.1)


def test_what_a_recorded_step_takes_by_hand() -> None:
    """A second each of products and attention, and of moving, as of one that is not recorded, and of kernels."""
    step = Step(0, 0, 0, 0, 911 * 10**9, 724 * 10**9, 780 * 10**6, round(1e6 / 2.92))
    assert step_seconds(step, Rates(1e12, 1e9), packed=False, recorded=True) == pytest.approx(4)


@given(STEPS, RATES, st.sampled_from(WORK), st.integers(1, 10**15), st.booleans(), st.booleans())
def test_more_work_never_takes_less_time(step: Step, rates: Rates, kind: str, more: int, packed: bool, recorded: bool) -> None:
    longer = replace(step, **{kind: getattr(step, kind) + more})
    how = {"packed": packed, "recorded": recorded}
    assert step_seconds(longer, rates, **how) >= step_seconds(step, rates, **how)


@given(STEPS, RATES, st.booleans())
def test_packed_rows_never_take_less_time_than_one_row_of_as_much_attention(step: Step, rates: Rates, recorded: bool) -> None:
    packed, unpacked = (step_seconds(step, rates, packed=packed, recorded=recorded) for packed in (True, False))
    assert packed >= unpacked


@given(STEPS, RATES, st.floats(1, 100), st.floats(1, 100))
def test_a_faster_device_never_takes_longer_and_never_beats_the_launches(
    step: Step, rates: Rates, computing: float, moving: float
) -> None:
    faster = Rates(rates.bf16_flops_per_second * computing, rates.bandwidth_bytes_per_second * moving)
    before, after = (step_seconds(step, those, packed=False, recorded=False) for those in (rates, faster))
    assert step.kernels * LAUNCH_SECONDS <= after <= before


@given(STEPS, RATES, st.booleans())
def test_memory_that_is_held_takes_no_time(step: Step, rates: Rates, recorded: bool) -> None:
    empty = replace(step, peak_bytes=0, activation_bytes=0)
    how = {"packed": False, "recorded": recorded}
    assert step_seconds(empty, rates, **how) == step_seconds(step, rates, **how)
