"""The text of the fit report."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from llmft_cli.cli.views.fit import duration, fit_sections
from llmft_cli.fit.fit import Fit, PlanOption
from llmft_cli.fit.host_resources import HostResources
from llmft_cli.training.profiling.measuring import Measured

GIBIBYTE = 2**30
PLAN = {"batch_size": 2, "gradient_accumulation_steps": 8, "checkpointed_layers": 5, "optim": "adamw_torch_fused"}
OPTIONS = [
    PlanOption(["fast", "balanced"], PLAN, 10 * GIBIBYTE, 11 * GIBIBYTE, True, 9876.5),
    PlanOption([], PLAN | {"batch_size": 1}, 5 * GIBIBYTE, 6 * GIBIBYTE, True, 4000.0),
    PlanOption([], PLAN | {"batch_size": 4}, 20 * GIBIBYTE, 21 * GIBIBYTE, False, 12000.0),
]
FIT = Fit(
    model="some/model",
    fits=True,
    fitting_length=None,
    card="GPU 0: some card",
    available_bytes=12 * GIBIBYTE,
    plan=PLAN,
    predicted_peak_bytes=10 * GIBIBYTE,
    required_bytes=11 * GIBIBYTE,
    breakdown={"quantized_weights": 4 * GIBIBYTE, "activations": 6 * GIBIBYTE, "logits": 0},
    tokens_per_second=9876.5,
    training_seconds=7260.0,
    measured=None,
    footprint=HostResources(7_000_000_000, 0, GIBIBYTE, 2 * GIBIBYTE, 13 * GIBIBYTE, 15 * GIBIBYTE, 13 * GIBIBYTE),
    options=OPTIONS,
)


def test_the_answer_stands_first():
    summary, parts, plans, beside = fit_sections(FIT)
    assert summary.title == "Training some/model"
    assert dict(summary.rows) == {
        "fits": "yes",
        "on": "GPU 0: some card",
        "available": "12.00 GiB",
        "needs": "11.00 GiB, including torch's peak of 10.00 GiB",
        "speed": "about 9,876 tokens/s",
        "time": "about 2 h 1 min",
    }
    assert dict(parts.rows) == {"quantized weights": "4.00 GiB", "activations": "6.00 GiB"}
    assert [row[0] for row in plans.rows] == ["fast, balanced", "safe", "too large"]
    assert plans.rows[0] == ("fast, balanced", "2", "8", "5 layers", "adamw_torch_fused", "11.00 GiB", "9,876")
    assert dict(beside.rows)["RAM to merge"] == "15.00 GiB"
    assert "download" not in dict(beside.rows)


def test_plans_say_that_weights_are_kept() -> None:
    kept = replace(OPTIONS[1], plan=OPTIONS[1].plan | {"dequantized_weights": True})
    plans = fit_sections(replace(FIT, options=[kept, OPTIONS[0]]))[2]
    assert [row[4] for row in plans.rows] == ["adamw_torch_fused, weights kept dequantised", "adamw_torch_fused"]


def test_measured_stands_against_predicted():
    measured = Measured(int(10.1 * GIBIBYTE), int(10.5 * GIBIBYTE), GIBIBYTE, 0.5)
    summary = dict(fit_sections(replace(FIT, measured=measured))[0].rows)
    assert summary["measured"] == "10.10 GiB (prediction off by -1.0%), 10.50 GiB reserved, 1.00 GiB outside torch"


def test_without_a_card_nothing_is_claimed():
    unknown = replace(
        FIT,
        fits=None,
        card=None,
        available_bytes=None,
        tokens_per_second=None,
        options=[replace(option, choices=[], fits=None, tokens_per_second=None) for option in OPTIONS],
    )
    summary, _parts, plans, _beside = fit_sections(unknown)
    assert "fits" not in dict(summary.rows)
    assert plans.header[-1] == "needs"
    assert all(row[0] == "" for row in plans.rows)


def test_no_plan_fits():
    assert dict(fit_sections(replace(FIT, fits=False))[0].rows)["fits"] == "no, not even with the most frugal plan"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (89.4, "89 s"), (91, "2 min"), (5400, "90 min"), (5520, "1 h 32 min"), (90000, "25 h 0 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text
