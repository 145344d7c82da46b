"""Plans: none is chosen that does not fit, each kind is as described, and the user's batch stays the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.settings.config import resolve
from llmft_cli.training.plan import Plan, given_plan
from llmft_cli.training.planning.memory import Breakdown
from llmft_cli.training.planning.options import (
    BALANCED_SHARE,
    FRUGAL_OPTIM,
    HARDLY_FASTER,
    MOST_TOKENS,
    Option,
    Predictor,
    choose,
    fastest,
    fewest_checkpointed,
    options,
    required_bytes,
    sizes,
)
from llmft_cli.training.planning.simulation import full_batch
from llmft_cli.training.planning.speed import REFERENCE_RATES

from ..meta_models import on_meta, option_with, small_shape

PLAIN = "adamw_torch_fused"
NOTHING = Breakdown(0, 0, 0, 0, 0, 0, 0, 0, 0)
LAYERS = 5
CARD = 1000

PLANS = st.builds(Plan, st.sampled_from([1, 2, 4]), st.just(4), st.integers(0, LAYERS), st.sampled_from([PLAIN, FRUGAL_OPTIM]))
# Some speeds are so close that the memory decides.
SPEEDS = st.one_of(st.floats(1, 1e6), st.floats(100, 102))
MADE_UP = st.builds(Option, PLANS, st.just(NOTHING), st.integers(1, 2 * CARD), SPEEDS)


def option(required: int, speed: float, optim: str = PLAIN, checkpointed: int = 0, batch_size: int = 1) -> Option:
    return Option(Plan(batch_size, 4, checkpointed, optim), NOTHING, required, speed)


@given(st.integers(1, 500))
def test_sizes_are_the_divisors_of_the_effective_batch(effective: int) -> None:
    found = sizes(effective)
    assert found == sorted(set(found))
    assert {(size, effective // size) for size in found} == {
        (first, second) for first in range(1, effective + 1) for second in [effective // first] if first * second == effective
    }


@given(st.lists(MADE_UP, max_size=12), st.integers(1, 2 * CARD), st.sampled_from(["fast", "balanced", "frugal"]))
def test_what_is_chosen_fits_and_nothing_is_chosen_only_where_nothing_fits(
    found: list[Option], available: int, kind: str
) -> None:
    chosen = choose(found, available, kind)
    fitting = [one for one in found if one.required_bytes <= available]
    assert (chosen is None) == (not fitting)
    assert chosen is None or chosen in fitting


@given(st.lists(MADE_UP, min_size=1, max_size=12), st.integers(1, 2 * CARD))
def test_the_kinds_are_ordered(found: list[Option], available: int) -> None:
    fast, balanced, frugal = (choose(found, available, kind) for kind in ("fast", "balanced", "frugal"))
    if fast is None or balanced is None or frugal is None:
        return
    assert frugal.required_bytes <= min(fast.required_bytes, balanced.required_bytes)
    # An optimizer in 8 bits is no reason to be taken, so a faster plan may have one.
    assert is_about_as_fast(fast, balanced) or is_frugal(balanced) > is_frugal(fast)
    if any(one.required_bytes <= BALANCED_SHARE * available for one in found):
        assert balanced.required_bytes <= BALANCED_SHARE * available
    else:
        assert balanced == frugal


def is_about_as_fast(one: Option, other: Option) -> bool:
    """Whether it is faster, or saves enough memory for its lower speed."""
    return one.tokens_per_second >= (1 - HARDLY_FASTER) * other.tokens_per_second


def is_frugal(one: Option) -> bool:
    return one.plan.optim == FRUGAL_OPTIM


@given(st.lists(MADE_UP, min_size=1, max_size=12), st.integers(1, 2 * CARD))
def test_an_optimizer_in_8_bits_is_fast_only_where_nothing_else_fits(found: list[Option], available: int) -> None:
    chosen = choose(found, available, "fast")
    plain = [one for one in found if one.required_bytes <= available and not is_frugal(one)]
    if plain:
        assert chosen is not None
        assert not is_frugal(chosen)
        assert all(is_about_as_fast(chosen, one) for one in plain)


@given(st.lists(MADE_UP, min_size=1, max_size=12))
def test_a_slower_plan_is_fastest_only_where_it_needs_less_and_recomputes_no_more(found: list[Option]) -> None:
    chosen = fastest(found)
    alike = [one for one in found if is_frugal(one) == is_frugal(chosen)]
    best = max(alike, key=lambda one: (one.tokens_per_second, -one.plan.checkpointed_layers, one.plan.batch_size))
    if chosen.tokens_per_second < best.tokens_per_second:
        assert chosen.required_bytes < best.required_bytes
        assert chosen.plan.checkpointed_layers <= best.plan.checkpointed_layers


@given(st.lists(MADE_UP, min_size=1, max_size=12), st.sampled_from(["fast", "balanced"]))
def test_without_a_limit_everything_fits(found: list[Option], kind: str) -> None:
    assert all(one.fits(None) for one in found)
    assert choose(found, None, kind) == fastest(found)


def test_each_kind_by_example() -> None:
    fast, roomy, slow, tiny = option(990, 100), option(740, 90), option(500, 50), option(300, 60, FRUGAL_OPTIM)
    found = [slow, fast, tiny, roomy]
    assert choose(found, CARD, "fast") == fast
    assert choose(found, CARD, "balanced") == roomy
    assert choose(found, CARD, "frugal") == tiny
    assert choose(found, 499, "fast") == tiny
    assert choose(found, 299, "frugal") is None
    assert choose([fast, option(900, 10)], CARD, "balanced") == option(900, 10)  # nothing within three quarters
    assert choose([], CARD, "fast") is None


def test_of_hardly_slower_plans_the_one_that_recomputes_no_more_and_needs_least() -> None:
    recomputing, small, large = (
        option(500, 70, checkpointed=3),
        option(600, 70, checkpointed=1),
        option(650, 70.6, batch_size=4),
    )
    assert fastest([recomputing, small, replace(large, plan=replace(large.plan, checkpointed_layers=1))]) == small
    assert fastest([recomputing, small, large]) == large
    assert fastest([recomputing, option(600, 69), large]) == large


@given(
    layers=st.integers(1, 40),
    standing=st.integers(0, 3000),
    costs=st.lists(st.integers(0, 200), min_size=40, max_size=40),
    available=st.integers(1, 6000),
)
def test_as_few_layers_are_checkpointed_as_fit(layers: int, standing: int, costs: list[int], available: int) -> None:
    """Against trying every number, where each further checkpointed layer takes no more than one fewer.

    To be asked where no checkpointing at all does not fit; all of them is another plan already.
    """
    needed = [standing + sum(costs[checkpointed:layers]) for checkpointed in range(layers + 1)]
    asked = []

    class Known:
        def predict(self, plan: Plan) -> Option:
            asked.append(plan.checkpointed_layers)
            return option(needed[plan.checkpointed_layers], 1, plan.optim, plan.checkpointed_layers)

    fitting = [number for number in range(1, layers) if needed[number] <= available]
    found = list(fewest_checkpointed(cast(Any, Known()), Plan(1, 1, layers, PLAIN), available))
    if needed[0] <= available:
        return
    assert [one.plan.checkpointed_layers for one in found] == fitting[:1]
    assert all(one.plan.optim == PLAIN for one in found)
    assert len(asked) <= 7  # halving, not trying


@pytest.fixture(scope="module")
def model() -> Any:
    return on_meta(small_shape(LAYERS), target_modules="q_proj,v_proj")


def found_options(model: Any, available: int | None, length: int = 256, **flags: Any) -> list[Option]:
    config = resolve({"batch_size": 2, "gradient_accumulation_steps": 4, **flags})
    return list(options(model, config, lambda size: full_batch(size, length), available, REFERENCE_RATES))


def needed_by(found: list[Option], **wanted: Any) -> int:
    wanted = {"dequantized_weights": False, "activation_offloading": False} | wanted
    (one,) = [one for one in found if all(getattr(one.plan, name) == value for name, value in wanted.items())]
    return one.required_bytes


@pytest.mark.slow
def test_the_effective_batch_is_always_the_users(model: Any) -> None:
    found = found_options(model, None)
    assert {one.plan.batch_size for one in found} == {1, 2, 4, 8}
    assert {one.plan.batch_size * one.plan.gradient_accumulation_steps for one in found} == {8}
    odd = found_options(model, None, batch_size=3, gradient_accumulation_steps=1)
    assert {(one.plan.batch_size, one.plan.gradient_accumulation_steps) for one in odd} == {(1, 3), (3, 1)}


@pytest.mark.slow
def test_plans_come_without_and_with_checkpointing_by_default(model: Any) -> None:
    unlimited = found_options(model, None)
    assert {one.plan.checkpointed_layers for one in unlimited} == {0, LAYERS}
    assert {one.plan.optim for one in unlimited} == {PLAIN, FRUGAL_OPTIM}


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "layers"), [(True, {LAYERS}), (False, {0})])
def test_checkpointing_that_is_asked_for_or_ruled_out_stays_so(model: Any, wanted: bool, layers: set[int]) -> None:
    unlimited = found_options(model, None)
    tight = needed_by(unlimited, batch_size=1, checkpointed_layers=0, optim=PLAIN)
    for available in (None, 2 * tight, tight - 1, 1):
        found = found_options(model, available, gradient_checkpointing=wanted)
        assert {one.plan.checkpointed_layers for one in found} == layers


@pytest.mark.slow
def test_the_users_own_optimizer_in_8_bits_is_not_offered_twice(model: Any) -> None:
    found = found_options(model, None, optim=FRUGAL_OPTIM)
    assert {one.plan.optim for one in found} == {FRUGAL_OPTIM}
    assert len({one.plan for one in found}) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_a_plan_with_some_layers_checkpointed_is_the_one_with_the_fewest_that_fit(model: Any, size: int) -> None:
    """On a simulated model, against every number of layers, with GPUs of all sizes between the minimum and the maximum."""
    config = resolve({"batch_size": 2, "gradient_accumulation_steps": 4})
    predictor = Predictor(model, config, full_batch(size, 256), REFERENCE_RATES)
    needed = [option_with(predictor, checkpointed, PLAIN).required_bytes for checkpointed in range(LAYERS + 1)]
    assert needed[:LAYERS] == sorted(needed[:LAYERS], reverse=True)
    for checkpointed in range(1, LAYERS):
        found = found_options(model, needed[checkpointed])
        plain = [one.plan for one in found if one.plan.optim == PLAIN and not one.plan.dequantized_weights]
        some = [plan.checkpointed_layers for plan in plain if plan.batch_size == size]
        assert some[:2] == [0, checkpointed]


@pytest.mark.slow
def test_no_larger_batches_are_looked_at_once_nothing_fits(model: Any) -> None:
    assert {one.plan.batch_size for one in found_options(model, 1)} == {1}
    unlimited = found_options(model, None)
    least_of_four = min(one.required_bytes for one in unlimited if one.plan.batch_size == 4)
    assert max(one.plan.batch_size for one in found_options(model, least_of_four - 1)) == 4
    assert max(one.plan.batch_size for one in found_options(model, least_of_four)) == 8


@pytest.mark.slow
def test_passes_are_not_made_longer_than_kernels_gain_from(model: Any) -> None:
    found = found_options(model, None, length=MOST_TOKENS // 4)
    assert {one.plan.batch_size for one in found} == {1, 2, 4}
    assert {one.plan.batch_size for one in found_options(model, None, length=2 * MOST_TOKENS)} == {1}


@pytest.mark.slow
def test_more_in_one_pass_needs_more_and_recomputing_less(model: Any) -> None:
    found = found_options(model, None)
    for optim in (PLAIN, FRUGAL_OPTIM):
        for layers in (0, LAYERS):
            plain = [one for one in found if one.plan.optim == optim and not one.plan.dequantized_weights]
            for offloading in (False, True):
                alike = [one for one in plain if one.plan.checkpointed_layers == layers]
                alike = [one for one in alike if one.plan.activation_offloading == offloading]
                by_size = sorted({one.plan.batch_size: one.required_bytes for one in alike}.items())
                assert [needed for _, needed in by_size] == sorted(needed for _, needed in by_size)
    for size in (1, 2, 4, 8):
        free = needed_by(found, batch_size=size, checkpointed_layers=0, optim=PLAIN)
        assert needed_by(found, batch_size=size, checkpointed_layers=LAYERS, optim=PLAIN) < free


@pytest.mark.slow
def test_a_process_takes_more_than_torch_gives_out(model: Any) -> None:
    for one in found_options(model, None):
        assert one.required_bytes > one.breakdown.total
    small, large = replace(NOTHING, quantized_weights=1), replace(NOTHING, quantized_weights=1, activations=2**30)
    assert required_bytes(large) - required_bytes(small) >= 2**30


@pytest.mark.parametrize(("checkpointing", "layers"), [(True, 32), (False, 0)])
def test_the_plan_that_the_settings_spell_out(checkpointing: bool, layers: int) -> None:
    config = resolve({"batch_size": 3, "gradient_accumulation_steps": 5, "optim": "sgd"})
    assert given_plan(config, 32, checkpointing) == Plan(3, 5, layers, "sgd")
