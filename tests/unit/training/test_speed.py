"""Predicted times of steps against those of an H100, and how they must change with what a step does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.training.simulation import Step
from llmft_cli.training.speed import LAUNCH_SECONDS, REFERENCE_RATES, Rates, recorded_step_seconds, step_seconds

from .meta_models import predicted_fast, recorded, recorded_fast
from .test_prediction import QUICK_RECORDED_CASES

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


# Of recorded trainings, what their steps computed and moved with the plain layers of then, which rounded the base's output
# before they added to it: operations of products and of attention, bytes, and kernels. Today's copy their inputs to round once.
COUNTED = {
    4: (271_014_634_192_896, 17_592_186_044_416, 723_079_545_160, 10_266),
    10: (115_683_895_541_760, 7_696_581_394_432, 337_369_091_792, 8_682),
    12: (324_395_134_353_408, 4_947_802_324_992, 830_548_485_088, 11_754),
    18: (846_320_646_488_064, 24_739_011_624_960, 1_494_544_503_988, 28_938),
    22: (282_223_706_112, 31_708_938_240, 6_281_042_608, 8_074),
    25: (120_406_212_083_712, 7_696_581_394_432, 327_489_005_264, 8_682),
    29: (123_762_536_087_552, 1_924_145_348_608, 342_290_696_440, 8_970),
}


def test_steps_take_about_as_long_as_the_h100_needed() -> None:
    """Most within a fifth, and none so far off that another plan would be taken for faster by half."""
    ratios = []
    for number, counted in COUNTED.items():
        step = Step(0, 0, 0, 0, *counted)
        ratios.append(step_seconds(step, REFERENCE_RATES) / recorded()[number]["measured"]["step_seconds"])
    assert sum(abs(ratio - 1) <= 0.2 for ratio in ratios) >= 0.8 * len(ratios)
    assert all(2 / 3 < ratio < 3 / 2 for ratio in ratios)


@pytest.mark.parametrize("number", QUICK_RECORDED_CASES)
def test_recorded_steps_take_as_long_as_the_h100_needed(number: int) -> None:
    """Within a tenth; what a paged optimizer takes of a step is not predicted."""
    case = recorded_fast()[number]
    paged = case["optim"] == "paged_adamw_8bit"
    measured = case["sequences"] * case["length"] / case["measured"]["step_seconds"]
    assert predicted_fast(number).tokens_per_second == pytest.approx(measured, rel=0.2 if paged else 0.1)


def test_what_a_step_takes_by_hand() -> None:
    """A second of products, of attention at 44% of that rate, and of moving at half the bandwidth."""
    rates = Rates(1e12, 1e9)
    step = Step(0, 0, 0, 0, 10**12, 44 * 10**10, 5 * 10**8, 10)
    assert step_seconds(step, rates) == pytest.approx(3)
    assert step_seconds(replace(step, kernels=100_000), rates) == pytest.approx(100_000 * LAUNCH_SECONDS)


def test_what_a_recorded_step_takes_by_hand() -> None:
    """A second each of products at 92.5% of the rate, of attention, of moving at 74.2% of the bandwidth, and of kernels."""
    rates = Rates(1e12, 1e9)
    step = Step(0, 0, 0, 0, 925 * 10**9, 753 * 10**9, 742 * 10**6, round(1e6 / 2.77))
    assert recorded_step_seconds(step, rates, packed=False) == pytest.approx(4)
    packed = replace(step, attention_flops=44 * 10**10)
    assert recorded_step_seconds(packed, rates, packed=True) == pytest.approx(4)


@given(STEPS, RATES, st.sampled_from(WORK), st.integers(1, 10**15))
def test_more_work_never_takes_less_time(step: Step, rates: Rates, kind: str, more: int) -> None:
    longer = replace(step, **{kind: getattr(step, kind) + more})
    assert step_seconds(longer, rates) >= step_seconds(step, rates)
    for packed in (True, False):
        assert recorded_step_seconds(longer, rates, packed) >= recorded_step_seconds(step, rates, packed)


@given(STEPS, RATES)
def test_packed_rows_never_take_less_time_than_one_row_of_as_much_attention(step: Step, rates: Rates) -> None:
    assert recorded_step_seconds(step, rates, packed=True) >= recorded_step_seconds(step, rates, packed=False)


@given(STEPS, RATES, st.floats(1, 100), st.floats(1, 100))
def test_a_faster_device_never_takes_longer_and_never_beats_the_launches(
    step: Step, rates: Rates, computing: float, moving: float
) -> None:
    faster = Rates(rates.bf16_flops_per_second * computing, rates.bandwidth_bytes_per_second * moving)
    assert step.kernels * LAUNCH_SECONDS <= step_seconds(step, faster) <= step_seconds(step, rates)


@given(STEPS, RATES)
def test_memory_that_is_held_takes_no_time(step: Step, rates: Rates) -> None:
    assert step_seconds(replace(step, peak_bytes=0, activation_bytes=0), rates) == step_seconds(step, rates)
