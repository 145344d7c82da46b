"""A plan's predicted GPU memory against an H100's measurements, and what is sacrificed to make a plan fit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from llmft_cli.settings.config import resolve
from llmft_cli.training.device_memory import CONTEXT_BYTES, hold_to
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.decide import plan_notice
from llmft_cli.training.planning.memory import Breakdown
from llmft_cli.training.planning.options import (
    FRUGAL_OPTIM,
    RECORDED_RESERVE_BYTES,
    RESERVE_BYTES,
    RESERVE_SHARE,
    Option,
    Predictor,
    choose,
    fastest,
    options,
    required_bytes,
)
from llmft_cli.training.planning.simulation import full_batch
from llmft_cli.training.planning.speed import REFERENCE_RATES

from ...settled import settled
from ..meta_models import fast_model, on_meta, option_with, recorded, recorded_fast, small_shape

MEBIBYTE, GIBIBYTE = 2**20, 2**30
NOTHING = Breakdown(0, 0, 0, 0, 0, 0, 0, 0, 0)


# Plain layers on an H100 with expandable segments: model, batch, checkpointed layers; then in MiB the activations at the
# peak, those of the step with every layer checkpointed, and most bytes reserved less most bytes allocated.
RESERVED = [
    ("llama-2-7b 1x2048 all, rank 16", 906, 906, 234),
    ("llama-2-7b 1x4096 all, rank 16", 1_810, 1_810, 289),
    ("llama-2-13b 1x2048 all, rank 16", 1_293, 1_293, 246),
    ("llama-2-70b 1x2048 all, rank 16", 3_420, 3_420, 433),
    ("llama-2-7b 1x512 all, rank 16", 144, 144, 190),
    ("llama-2-7b 1x2048 all, rank 16", 906, 906, 214),
    ("llama-2-7b 4x2048 all, rank 16", 3_791, 3_791, 435),
    ("llama-2-7b 4x2048 0, rank 16", 43_230, 3_791, 437),
    ("llama-2-7b 4x2048 16, rank 16", 23_089, 3_791, 376),
    ("llama-2-7b 1x4096 all, rank 16", 1_810, 1_810, 287),
    ("llama-2-7b 8x512 0, rank 16", 21_615, 1_810, 210),
    ("llama-2-7b 2x8192 all, rank 16", 7_581, 7_581, 398),
    ("llama-2-7b 8x8192 all, rank 8", 30_319, 30_319, 2_500),
    ("llama-2-7b 2x2048 all, rank 128", 1_824, 1_824, 375),
    ("llama-2-7b 2x2048 0, rank 128", 21_811, 1_824, 511),
    ("llama-2-7b 1x8192 0, rank 16", 43_230, 3_791, 437),
    ("llama-2-7b 1x8192 all, rank 16", 3_791, 3_791, 435),
    ("llama-2-7b 4x2048 0, rank 16", 43_230, 3_791, 437),
    ("llama-2-13b 1x2048 all, rank 16", 1_293, 1_293, 245),
    ("llama-2-13b 2x2048 0, rank 8", 33_726, 2_584, 1_771),
    ("llama-2-13b 4x4096 all, rank 16", 10_766, 10_766, 501),
    ("llama-2-13b 1x2048 20, rank 64", 8_843, 1_298, 566),
    ("llama-2-70b 1x2048 all, rank 16", 3_420, 3_420, 493),
    ("llama-2-70b 1x512 all, rank 8", 856, 856, 289),
    ("smollm2-135m 8x2048 0, rank 16", 10_606, 1_010, 113),
    ("smollm2-135m 16x1024 all, rank 16", 1_010, 1_010, 99),
    ("smollm2-135m 1x512 0, rank 8", 330, 19, 67),
    ("smollm2-135m 8x2048 0, rank 16", 10_606, 1_010, 113),
    ("mistral-7b 4x2048 all, rank 16", 4_007, 4_007, 413),
    ("mistral-7b 2x2048 0, rank 64", 23_491, 1_899, 249),
    ("mistral-7b 1x8192 16, rank 16", 24_881, 4_007, 319),
    ("llama-3-8b 4x2048 all, rank 16", 4_007, 4_007, 429),
    ("llama-3-8b 1x8192 all, rank 16", 4_007, 4_007, 429),
    ("llama-3-8b 8x512 0, rank 16", 23_407, 1_893, 188),
]
# Of these the last figure is what was reserved and not allocated when the memory ran out, and what was asked for.
RAN_OUT = ("llama-2-7b 2x2048 0, rank 128", "llama-2-13b 2x2048 0, rank 8", "llama-2-13b 1x2048 20, rank 64")


def provided_mebibytes(activations: int, checkpointed: int, fast_layers: bool) -> float:
    breakdown = replace(NOTHING, quantized_weights=5 * GIBIBYTE, activations=activations * MEBIBYTE)
    required = required_bytes(breakdown, checkpointed * MEBIBYTE, fast_layers)
    return (required - CONTEXT_BYTES - breakdown.total) / MEBIBYTE


@pytest.mark.parametrize(("what", "activations", "checkpointed", "reserved"), RESERVED, ids=lambda value: str(value))
def test_what_torch_holds_in_reserve_is_provided_for(what: str, activations: int, checkpointed: int, reserved: int) -> None:
    provided = provided_mebibytes(activations, checkpointed, fast_layers=False)
    assert reserved < provided < 1.45 * reserved + 0.06 * activations + 205
    # Steps whose layers are all checkpointed keep too little for holes to count.
    if activations == checkpointed:
        assert provided == provided_mebibytes(activations, checkpointed, fast_layers=True)


@pytest.mark.parametrize("failed", RAN_OUT)
def test_what_ran_out_of_memory_is_given_more_than_it_was(failed: str) -> None:
    ((_, activations, checkpointed, reserved),) = [case for case in RESERVED if case[0] == failed]
    assert provided_mebibytes(activations, checkpointed, fast_layers=True) < reserved  # the rule that it ran out under
    assert provided_mebibytes(activations, checkpointed, fast_layers=False) > 1.1 * reserved


@pytest.mark.parametrize("number", range(len(recorded_fast())))
def test_what_torch_held_in_reserve_with_fast_layers_is_provided_for(number: int) -> None:
    """Each of these trainings was limited to its predicted requirement or less; none ran out of memory."""
    case = recorded_fast()[number]
    reserved = case["measured"]["reserved_bytes"] - case["measured"]["peak_bytes"]
    breakdown, recorded = Breakdown(**case["breakdown"]), not case["embeddings_on_cpu"]
    least = RECORDED_RESERVE_BYTES if recorded else RESERVE_BYTES
    checkpointed = round((case["required_bytes"] - case["predicted_bytes"] - least - CONTEXT_BYTES) / RESERVE_SHARE)
    assert required_bytes(breakdown, checkpointed, True, recorded) == pytest.approx(case["required_bytes"], abs=1)
    provided = case["required_bytes"] - case["predicted_bytes"] - CONTEXT_BYTES
    assert 1.4 * reserved < provided < reserved + 0.1 * checkpointed + 0.32 * GIBIBYTE


def test_trainings_kept_to_what_they_were_said_to_require() -> None:
    """Those with a budget of their own came last, after others in the same process whose paged memory was still there."""
    own = [case for case in (*recorded(), *recorded_fast()) if not case["max_vram_gibibytes"]]
    assert (len(own), len(recorded()), len(recorded_fast())) == (30 + 35, 31, 39)
    for case in own:
        assert case["measured"]["reserved_bytes"] + case["measured"]["context_bytes"] < case["required_bytes"]
    for case in recorded_fast():
        budget = case["max_vram_gibibytes"] * GIBIBYTE or case["required_bytes"]
        assert case["measured"]["reserved_bytes"] <= budget - CONTEXT_BYTES


def test_all_measured_configurations_are_there() -> None:
    assert len(RESERVED) == 34
    assert set(RAN_OUT) < {case[0] for case in RESERVED}


def test_the_reserve_by_arithmetic() -> None:
    breakdown = replace(NOTHING, quantized_weights=1000, activations=10 * GIBIBYTE, logits=500)
    beside = 1500 + 10 * GIBIBYTE + int(0.2 * GIBIBYTE) + CONTEXT_BYTES
    # A tenth of the checkpointed step's activations, for which the breakdown's are taken where no others are given.
    assert required_bytes(breakdown) == required_bytes(breakdown, fast_layers=True) == beside + GIBIBYTE
    assert required_bytes(breakdown, 8 * GIBIBYTE) == beside + int(0.8 * GIBIBYTE)
    assert required_bytes(breakdown, 2 * GIBIBYTE, fast_layers=True) == beside + int(0.2 * GIBIBYTE)
    recorded = required_bytes(breakdown, 2 * GIBIBYTE, fast_layers=True, recorded=True)
    assert recorded == beside - int(0.2 * GIBIBYTE) + int(0.35 * GIBIBYTE) + int(0.2 * GIBIBYTE)
    # In plain layers at least 5.5% of what the step itself keeps.
    assert required_bytes(breakdown, 2 * GIBIBYTE) == beside + int(0.55 * GIBIBYTE)


@pytest.mark.parametrize("fast", [True, False])
def test_a_plan_requires_what_its_kind_of_layers_does(fast: bool) -> None:
    model = on_meta(small_shape(5), None, fast=fast)
    predictor = Predictor(model, settled({"batch_size": 8}), full_batch(8, 4096), REFERENCE_RATES)
    free, checkpointed = (option_with(predictor, layers, "sgd") for layers in (0, 5))
    kept = checkpointed.breakdown.activations
    assert free.required_bytes == required_bytes(free.breakdown, kept, fast_layers=fast, recorded=fast)
    plain, unrecorded = required_bytes(free.breakdown, kept), required_bytes(free.breakdown, kept, fast_layers=fast)
    assert (unrecorded < plain) == (unrecorded < free.required_bytes) == fast
    moved = option_with(predictor, 0, "sgd", embeddings_on_cpu=True)
    assert moved.required_bytes == required_bytes(moved.breakdown, kept, fast_layers=fast, recorded=False)


@cache
def under(gibibytes: int) -> tuple[Option, ...]:
    """Plans of Llama-2-7B at length 2,048."""
    found = options(
        fast_model("llama-2-7b", 16),
        settled({"batch_size": 4}),
        lambda size: full_batch(size, 2048),
        gibibytes * GIBIBYTE,
        REFERENCE_RATES,
    )
    return tuple(found)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "on_cpu"), [("fast", False), ("balanced", True), ("frugal", True)])
def test_llama_2_7b_trains_in_6_gibibytes_with_activations_offloaded(kind: str, on_cpu: bool) -> None:
    """With the embeddings on the CPU too where as little as can be is wanted; that needs 5.4 GiB."""
    option = choose(under(6), 6 * GIBIBYTE, kind)
    assert option is not None
    assert option.plan == Plan(1, 16, 32, FRUGAL_OPTIM, embeddings_on_cpu=on_cpu, activation_offloading=True)
    assert option.required_bytes < (5.4 if on_cpu else 5.9) * GIBIBYTE
    what = f"{FRUGAL_OPTIM}{', embeddings on the CPU' if on_cpu else ''}, activations offloaded"
    assert plan_notice(option, 6 * GIBIBYTE, settled({"batch_size": 1})).endswith(
        f"{what}; needs about {5.4 if on_cpu else 5.8} of 6.0 GiB"
    )


@pytest.mark.slow
def test_embeddings_stay_on_the_card_as_long_as_a_plan_fits_so() -> None:
    for available in (6, 7, 8):
        chosen = choose(under(available), available * GIBIBYTE, "fast")
        assert chosen is not None
        assert not chosen.plan.embeddings_on_cpu
        assert "embeddings" not in plan_notice(chosen, available * GIBIBYTE, settled({"batch_size": 1}))
    frugal = choose(under(8), 8 * GIBIBYTE, "frugal")
    assert frugal is not None
    assert frugal.plan == Plan(1, 16, 32, FRUGAL_OPTIM, embeddings_on_cpu=True, activation_offloading=True)


@pytest.mark.slow
def test_activations_are_offloaded_where_more_goes_through_at_once_then() -> None:
    """Four sequences of 2,048 are 1.9 GiB less, and faster than two that keep everything on the card."""
    chosen = choose(under(8), 8 * GIBIBYTE, "fast")
    assert chosen is not None
    assert chosen.plan == Plan(4, 4, 32, "adamw_torch_fused", activation_offloading=True)
    # With more, 21 layers of single sequences keep what they compute.
    roomy = choose(under(10), 10 * GIBIBYTE, "fast")
    assert roomy is not None
    assert roomy.plan == Plan(1, 16, 11, "adamw_torch_fused")
    by_plan = {one.plan: one for one in under(80)}
    kept = by_plan[Plan(4, 4, 32, "adamw_torch_fused")]
    offloaded = by_plan[Plan(4, 4, 32, "adamw_torch_fused", activation_offloading=True)]
    # Of 32 inputs of 8,192 tokens two are there at once.
    assert kept.breakdown.total - offloaded.breakdown.total == 30 * 8192 * 4096 * 2
    assert 0.98 * kept.tokens_per_second < offloaded.tokens_per_second < 0.99 * kept.tokens_per_second


@pytest.mark.slow
def test_a_card_with_room_computes_nothing_twice_and_keeps_weights() -> None:
    chosen = choose(under(80), 80 * GIBIBYTE, "fast")
    assert chosen is not None
    assert (chosen.plan.checkpointed_layers, chosen.plan.optim) == (0, "adamw_torch_fused")
    assert chosen.plan.dequantized_weights


def test_what_is_given_up_goes_from_little_to_much() -> None:
    kept = Option(Plan(1, 1, 1, "adamw_torch"), NOTHING, 0, tokens_per_second=1.0)
    smaller = Option(Plan(1, 1, 1, FRUGAL_OPTIM), NOTHING, 0, tokens_per_second=2.0)
    least = Option(Plan(1, 1, 1, FRUGAL_OPTIM, True), NOTHING, 0, tokens_per_second=3.0)
    assert fastest([least, smaller, kept]) is kept
    assert fastest([least, smaller]) is smaller
    assert fastest([least]) is least


@pytest.mark.parametrize(("tied", "expected"), [(True, {False}), (False, {False, True})])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_only_embeddings_that_can_be_moved_are(tied: bool, expected: set[bool], checkpointing: bool | None) -> None:
    config = resolve({"gradient_checkpointing": checkpointing, "batch_size": 1, "gradient_accumulation_steps": 1})
    model = on_meta(small_shape(tie_word_embeddings=tied), None)
    found = list(options(model, config, lambda size: full_batch(size, 64), None, REFERENCE_RATES))
    assert {one.plan.embeddings_on_cpu for one in found} == expected
    frugal = [one for one in found if one.plan.embeddings_on_cpu]
    checkpointed = checkpointing is not False
    assert {one.plan for one in frugal} == {
        Plan(1, 1, 2 * checkpointed, FRUGAL_OPTIM, embeddings_on_cpu=True, activation_offloading=checkpointed) for _ in frugal
    }


def test_the_budget_leaves_room_for_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 80 * GIBIBYTE

    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    for budget in (6 * GIBIBYTE, 100 * GIBIBYTE, CONTEXT_BYTES // 2):
        hold_to(budget, torch.device("cuda", 0))
    assert shares == [(6 * GIBIBYTE - CONTEXT_BYTES) / (80 * GIBIBYTE), 1.0, 0.0]
