"""Plans that keep the dequantised weights: where they are offered, what they need, and what their steps do less."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from llmft_cli.settings.config import resolve
from llmft_cli.training.fast.architectures import blocks_of, keep_dequantized
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.memory import Breakdown, breakdown_of, holdings
from llmft_cli.training.planning.options import FRUGAL_OPTIM, Option, Predictor, choose, fastest, options
from llmft_cli.training.planning.simulation import Step, full_batch, simulate
from llmft_cli.training.planning.speed import REFERENCE_RATES
from llmft_cli.training.planning.step_costs import StepCosts, can_keep_dequantized
from llmft_cli.training.step.checkpointing import checkpoint_layers

from ..meta_models import on_meta, option_with, small_shape

PLAIN = "adamw_torch_fused"
LAYERS, RANK = 5, 16
# (outputs, inputs) of a layer's products and their adapters: q, k, v; o; gate, up; down.
PRODUCTS = [(128 + 64 + 64, 128, 3), (128, 128, 1), (2 * 256, 128, 2), (128, 256, 1)]


@cache
def model_of(layers: int = LAYERS, quantization: str = "nf4", fast: bool = True) -> Any:
    return on_meta(small_shape(layers), None, quantization, fast=fast, lora_r=RANK)


def found_options(model: Any, available: int | None = None, length: int = 256, **flags: Any) -> list[Option]:
    config = resolve({"batch_size": 2, "gradient_accumulation_steps": 2, **flags})
    return list(options(model, config, lambda size: full_batch(size, length), available, REFERENCE_RATES))


def matrix_bytes(outputs: int, inputs: int, adapters: int) -> int:
    """In bf16, with room for the adapters on both sides; the inputs are padded to multiples of 64."""
    ranks = -(-adapters * RANK // 64) * 64
    return (outputs + ranks) * (inputs + ranks) * 2


def test_each_size_is_offered_with_kept_weights_before_it_is_without() -> None:
    found = [one.plan for one in found_options(model_of()) if one.plan.checkpointed_layers == 0]
    assert [(plan.batch_size, plan.dequantized_weights) for plan in found] == [
        (1, True), (1, False), (2, True), (2, False), (4, True), (4, False)
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [{}, {"gradient_checkpointing": False}, {"optim": "lion_8bit"}])
def test_what_saves_memory_is_not_given_up_for_kept_weights(flags: dict[str, Any]) -> None:
    kept = [one.plan for one in found_options(model_of(), **flags) if one.plan.dequantized_weights]
    assert {plan.optim for plan in kept} == {flags.get("optim", PLAIN)}
    assert not any(plan.embeddings_on_cpu for plan in kept)
    assert {plan.checkpointed_layers for plan in kept} == {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ({}, {"gradient_checkpointing": True}),
        ({"fast": False}, {}),
        ({"quantization": "none"}, {}),
    ],
)
def test_weights_are_not_kept_where_that_has_no_use_or_is_not_wanted(model: dict[str, Any], flags: dict[str, Any]) -> None:
    found = found_options(model_of(**model), **flags)
    assert found
    assert not any(one.plan.dequantized_weights for one in found)
    assert can_keep_dequantized(model_of(**model)) == (not model)


def test_a_plan_that_cannot_keep_weights_does_not_say_that_it_does() -> None:
    config = resolve({"batch_size": 2, "gradient_accumulation_steps": 1})
    predictor = Predictor(model_of(fast=False), config, full_batch(2, 64), REFERENCE_RATES)
    assert option_with(predictor, 0, PLAIN, dequantized_weights=True) == option_with(predictor, 0, PLAIN)


def test_what_is_kept_by_arithmetic() -> None:
    config = resolve({"batch_size": 2, "gradient_accumulation_steps": 1})
    predictor = Predictor(model_of(), config, full_batch(2, 64), REFERENCE_RATES)
    plain, kept = (option_with(predictor, 0, PLAIN, dequantized_weights=whether) for whether in (False, True))
    assert plain.breakdown.dequantized_weights == max(matrix_bytes(*product) for product in PRODUCTS)
    assert kept.breakdown.dequantized_weights == LAYERS * sum(matrix_bytes(*product) for product in PRODUCTS)
    more = kept.breakdown.dequantized_weights - plain.breakdown.dequantized_weights
    assert kept.breakdown.total - plain.breakdown.total == kept.required_bytes - plain.required_bytes == more
    assert kept.breakdown.dense_weights == plain.breakdown.dense_weights
    assert kept.tokens_per_second > plain.tokens_per_second
    assert breakdown_of(holdings(model_of()), simulate(model_of(), full_batch(2, 64)), PLAIN).dequantized_weights == (
        plain.breakdown.dequantized_weights
    )  # the model is as it was


def test_dense_weights_in_fast_layers_are_no_dequantised_ones() -> None:
    model = model_of(quantization="none")
    assert len(blocks_of(model)) == LAYERS
    breakdown = breakdown_of(holdings(model), simulate(model, full_batch(1, 64)), PLAIN)
    assert breakdown.dequantized_weights == 0
    assert breakdown.dense_weights > LAYERS * sum(matrix_bytes(*product) for product in PRODUCTS)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, LAYERS])
@pytest.mark.parametrize("checkpointed", [0, 1, 2])
def test_steps_with_kept_weights_are_those_of_a_model_that_keeps_them(layers: int, checkpointed: int) -> None:
    """At another size than the one that what is saved was followed at; with few layers, and with enough to reckon."""
    model, batch = model_of(layers), full_batch(3, 192)
    found = StepCosts(model, batch).step(Plan(3, 1, checkpointed, PLAIN, dequantized_weights=True))
    checkpoint_layers(model, checkpointed)
    keep_dequantized(model, True)
    try:
        followed = simulate(model, batch)
    finally:
        keep_dequantized(model, False)
    dequantizing = simulate(model, batch)
    assert found == followed
    assert (dequantizing.moved_bytes > found.moved_bytes) and (dequantizing.kernels > found.kernels)  # noqa: PT018
    assert held(dequantizing) == held(found)


def held(step: Step) -> tuple[int, ...]:
    return step.peak_bytes, step.activation_bytes, step.logits_bytes, step.workspace_bytes


@pytest.mark.slow
def test_as_few_layers_are_checkpointed_as_fit_beside_kept_weights() -> None:
    config = resolve({"batch_size": 1, "gradient_accumulation_steps": 1})
    predictor = Predictor(model_of(), config, full_batch(1, 4096), REFERENCE_RATES)
    plans = [option_with(predictor, checkpointed, PLAIN, dequantized_weights=True) for checkpointed in range(LAYERS)]
    needed = [one.required_bytes for one in plans]
    for checkpointed in range(1, LAYERS):
        flags = {"batch_size": 1, "gradient_accumulation_steps": 1}
        found = found_options(model_of(), needed[checkpointed], length=4096, **flags)
        kept = [one.plan.checkpointed_layers for one in found if one.plan.dequantized_weights]
        assert kept == [0, checkpointed]


def test_kept_weights_are_taken_where_they_fit_and_never_by_the_frugal() -> None:
    found = found_options(model_of(), length=64)
    free = [one for one in found if one.plan.checkpointed_layers == 0 and one.plan.batch_size == 4]
    kept, plain = (next(one for one in free if one.plan.dequantized_weights is whether) for whether in (True, False))
    fast, tight = choose(found, kept.required_bytes, "fast"), choose(found, kept.required_bytes - 1, "fast")
    assert fast == kept
    assert tight is not None
    assert tight != kept
    for available in (None, kept.required_bytes, plain.required_bytes):
        frugal = choose(found, available, "frugal")
        assert frugal is not None
        assert not frugal.plan.dequantized_weights
        assert frugal.plan.optim == FRUGAL_OPTIM
    assert choose(found, int(kept.required_bytes / 0.75) + 1, "balanced") == kept


def test_of_equally_fast_plans_the_one_that_keeps_no_weights() -> None:
    nothing = Breakdown(0, 0, 0, 0, 0, 0, 0, 0, 0)
    kept = Option(Plan(1, 4, 0, PLAIN, dequantized_weights=True), nothing, 600, 70.0)
    plain = Option(Plan(1, 4, 0, PLAIN), nothing, 500, 70.0)
    assert fastest([kept, plain]) is fastest([plain, kept]) is plain
