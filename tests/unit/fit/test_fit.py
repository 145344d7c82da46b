"""Whether a training fits: GPUs, plans, and the error when it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

from llmft_cli.base.errors import ConfigError, MachineError, OutOfMemory
from llmft_cli.base.reporter import Silent
from llmft_cli.fit import fit
from llmft_cli.fit.target_gpu import TargetGpu
from llmft_cli.settings.config import resolve
from llmft_cli.training.planning.speed import Rates

from ..followed_once import of_the_model, remember

GIBIBYTE = 2**30
H100 = Rates(790e12, 2.9e12)
MODELS: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def models_and_steps_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build each model once, and simulate each of its steps once, for all tests."""
    build = fit.trainable

    def built(shape: Any, config: Any, device: str, plan: Any = None, able: Any = None) -> Any:
        key = of_the_model(config), device, plan, able
        if key not in MODELS:
            MODELS[key] = build(shape, *key)
        return MODELS[key]

    monkeypatch.setattr(fit, "trainable", built)
    remember(monkeypatch)


def small(**flags: Any) -> Any:
    """The built-in model, whose config needs no download, with short sequences."""
    return resolve({"model": "smollm2-135m", "max_seq_length": 256, "batch_size": 2, "gradient_accumulation_steps": 2} | flags)


def by_tokens(tokens: int, **flags: Any) -> Any:
    defaults = {"model": "smollm2-135m", "max_seq_length": 256, "gradient_accumulation_steps": 3}
    return resolve(defaults | {"tokens_per_batch": tokens} | flags)


def on(gibibytes: float, rates: Rates | None = None) -> TargetGpu:
    return TargetGpu("a card", int(gibibytes * GIBIBYTE), None, rates)


@pytest.mark.slow
def test_fp32_takes_more_and_fp16_as_much_as_bf16() -> None:
    free = {"plan": "given", "gradient_checkpointing": False}
    peaks = {
        name: fit.fit(small(compute_dtype=name, **free), on(80), None, Silent()).predicted_peak_bytes
        for name in ("auto", "bf16", "fp16", "fp32")
    }
    assert peaks["auto"] == peaks["bf16"]
    assert peaks["fp16"] == pytest.approx(peaks["bf16"], abs=1024)
    assert peaks["fp32"] > 1.5 * peaks["bf16"]


@pytest.mark.slow
def test_without_a_card_it_is_neither_yes_nor_no():
    found = fit.fit(small(), None, None, Silent())
    assert found.fits is None
    assert found.available_bytes is None
    assert {option.fits for option in found.options} == {None}
    assert found.tokens_per_second is None
    fit.require_fit(found)


@pytest.mark.slow
def test_a_large_card_holds_it_and_the_pieces_add_up():
    found = fit.fit(small(), on(80, H100), None, Silent())
    assert found.fits is True
    assert sum(found.breakdown.values()) == found.predicted_peak_bytes < found.required_bytes
    assert found.plan["batch_size"] * found.plan["gradient_accumulation_steps"] == 4
    assert found.plan["checkpointed_layers"] == 0
    assert found.tokens_per_second is not None
    fastest = max(option.tokens_per_second or 0 for option in found.options if option.fits)
    assert found.tokens_per_second == fastest
    assert [kind for option in found.options for kind in option.choices].count("frugal") == 1


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_a_length_that_does():
    demanding = small(max_seq_length=8192)
    least = min(option.required_bytes for option in fit.fit(demanding, None, None, Silent()).options)
    found = fit.fit(demanding, on((least - 1) / GIBIBYTE), None, Silent())
    assert found.fits is False
    length = found.fitting_length
    assert length is not None
    assert length < 8192
    shorter = fit.fit(small(max_seq_length=length, batch_size=1), on((least - 1) / GIBIBYTE), None, Silent())
    assert shorter.fits is True
    with pytest.raises(OutOfMemory, match="smollm2-135m does not fit: the most frugal plan needs") as raised:
        fit.require_fit(found)
    assert raised.value.exit_code == 5
    assert f"--max-seq-length {length} fits" in raised.value.hint
    assert raised.value.details["fit"]["fits"] is False


@pytest.mark.slow
def test_a_budget_counts_like_a_smaller_card():
    config = small(max_vram="2GiB")
    found = fit.fit(config, on(80), None, Silent())
    assert found.available_bytes == 2 * GIBIBYTE
    assert found.required_bytes <= 2 * GIBIBYTE
    assert fit.fit(config, None, None, Silent()).fits is True


def test_a_plan_that_is_spelled_out_is_the_only_one():
    found = fit.fit(small(plan="given", gradient_checkpointing=True), on(80), None, Silent())
    assert [option.plan["checkpointed_layers"] for option in found.options] == [30]
    assert found.plan["batch_size"] == 2


def test_a_plan_file_is_the_only_one(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("batch_size: 1\ngradient_accumulation_steps: 4\ncheckpointed_layers: 10\noptim: adamw_torch_fused\n")
    found = fit.fit(small(plan=str(file)), on(80), None, Silent())
    assert [option.plan["checkpointed_layers"] for option in found.options] == [10]


@pytest.mark.parametrize("kept", [True, False])
def test_a_plan_file_may_keep_weights_dequantised(tmp_path, kept):
    file = tmp_path / "plan.yaml"
    plan = {"batch_size": 1, "gradient_accumulation_steps": 4, "checkpointed_layers": 0, "optim": "sgd"}
    file.write_text(json.dumps(plan | {"dequantized_weights": kept}))
    found = fit.fit(small(plan=str(file)), on(80), None, Silent())
    assert found.plan == plan | {"embeddings_on_cpu": False, "dequantized_weights": kept, "activation_offloading": False}
    # 16 bits of 106 million values in linear layers against the largest matrix of one of them.
    assert (found.breakdown["dequantized_weights"] > 212_000_000) == kept


@pytest.mark.parametrize("flags", [{"quantization": "int8"}, {"use_dora": True}, {"trust_remote_code": True}])
def test_what_cannot_be_followed_is_not_guessed(flags):
    with pytest.raises(ConfigError, match="cannot be predicted"):
        fit.fit(small(**flags), on(80), None, Silent())


def test_measuring_needs_a_card_that_is_here():
    with pytest.raises(MachineError, match="--measure needs a GPU"):
        fit.fit(small(), on(80), None, Silent(), measure=True)


@pytest.mark.slow
def test_waiting_asks_for_what_the_least_plan_with_the_wanted_optimizer_needs():
    found = fit.fit(small(), None, None, Silent())
    plain = [option.required_bytes for option in found.options if option.plan["optim"] == "adamw_torch_fused"]
    assert fit.least_bytes(found) == min(plain)
    cheaper = replace(found, plan={**found.plan, "optim": "paged_adamw_8bit"})
    assert fit.least_bytes(cheaper) < min(plain)


@pytest.mark.slow
def test_a_batch_of_tokens_is_one_size_whose_passes_are_the_users():
    found = fit.fit(by_tokens(1100), on(80), None, Silent())
    assert found.tokens_per_batch == 1100
    assert len(found.options) > 2
    assert {(one.plan["batch_size"], one.plan["gradient_accumulation_steps"]) for one in found.options} == {(4, 3)}
    larger = fit.fit(by_tokens(2200), on(80), None, Silent())
    assert larger.breakdown["activations"] == pytest.approx(2 * found.breakdown["activations"], rel=0.05)
    given = fit.fit(by_tokens(1100, plan="given"), on(80), None, Silent())
    assert [one.plan["batch_size"] for one in given.options] == [4]


@pytest.mark.slow
def test_where_a_batch_of_tokens_does_not_fit_fewer_are_proposed():
    config = by_tokens(2**16)
    least = min(option.required_bytes for option in fit.fit(config, None, None, Silent()).options)
    found = fit.fit(config, on((least - 1) / GIBIBYTE), None, Silent())
    assert (found.fits, found.fitting_length) == (False, 256)
    with pytest.raises(OutOfMemory) as raised:
        fit.require_fit(found)
    assert "--max-seq-length 256 --tokens-per-batch 256 fits; or use a smaller" in raised.value.hint


def test_a_batch_of_fewer_tokens_than_a_sequence_may_have_is_refused():
    with pytest.raises(ConfigError, match=r"--tokens-per-batch 255 is less than the longest sequence \(256 tokens\)"):
        fit.fit(by_tokens(255), on(80), None, Silent())
