"""What a plan needs of a card against what an H100 gave to it, and what is given up before a plan does not fit."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from llmft_cli import known_shapes
from llmft_cli.config import resolve
from llmft_cli.training.card import hold_to
from llmft_cli.training.planning import described
from llmft_cli.training.plans import (
    CONTEXT_BYTES,
    FRUGAL_OPTIM,
    Option,
    Plan,
    choose,
    fastest,
    option_of,
    options,
    required_bytes,
)
from llmft_cli.training.prediction import Breakdown
from llmft_cli.training.simulation import full_batch
from llmft_cli.training.speed import REFERENCE_RATES

from .meta_models import on_meta, shape_of, small_shape

GIBIBYTE = 2**30
LLAMA_7B, LLAMA_13B, LLAMA_70B = known_shapes.LLAMA_2_7B, known_shapes.LLAMA_2_13B, known_shapes.LLAMA_2_70B


@cache
def model_of(name: str) -> Any:
    shapes = {"7b": LLAMA_7B, "13b": LLAMA_13B, "70b": LLAMA_70B}
    return on_meta(shape_of(shapes[name]), None)


@pytest.mark.parametrize(
    ("name", "sequences", "length", "checkpointed", "measured_gibibytes"),
    [
        ("7b", 1, 512, 32, 0.19),
        ("7b", 1, 2048, 32, 0.21),
        ("7b", 1, 4096, 32, 0.28),
        ("7b", 4, 2048, 32, 0.44),
        ("7b", 4, 2048, 0, 0.44),
        ("7b", 4, 2048, 16, 0.36),
        ("7b", 8, 512, 0, 0.22),
        ("7b", 2, 8192, 32, 0.72),
        ("13b", 1, 2048, 40, 0.25),
        ("70b", 1, 2048, 80, 0.40),
    ],
)
def test_what_torch_holds_in_reserve_is_provided_for(
    name: str, sequences: int, length: int, checkpointed: int, measured_gibibytes: float
) -> None:
    """Measured on an H100 with expandable segments: most bytes reserved less most bytes allocated."""
    option = option_of(model_of(name), resolve({"batch_size": sequences}), full_batch(sequences, length), REFERENCE_RATES)
    found = option(checkpointed, "adamw_torch_fused")
    provided = (found.required_bytes - CONTEXT_BYTES - found.breakdown.total) / GIBIBYTE
    assert measured_gibibytes + 0.02 < provided < measured_gibibytes + 0.25


def test_without_more_the_breakdown_is_taken_for_that_of_a_checkpointed_step() -> None:
    breakdown = Breakdown(1000, 0, 0, 0, 0, activations=10 * GIBIBYTE, logits=500, workspace=0)
    beside = int(0.2 * GIBIBYTE) + CONTEXT_BYTES
    assert required_bytes(breakdown) == 11 * GIBIBYTE + 1500 + beside
    assert required_bytes(breakdown, 5 * GIBIBYTE) == 10 * GIBIBYTE + GIBIBYTE // 2 + 1500 + beside


@cache
def under(gibibytes: int) -> tuple[Option, ...]:
    """Plans of Llama-2-7B at length 2,048."""
    found = options(model_of("7b"), resolve({}), lambda size: full_batch(size, 2048), gibibytes * GIBIBYTE, REFERENCE_RATES)
    return tuple(found)


@pytest.mark.parametrize("kind", ["fast", "balanced", "frugal"])
def test_llama_2_7b_trains_in_6_gibibytes_with_embeddings_on_the_cpu(kind: str) -> None:
    option = choose(under(6), 6 * GIBIBYTE, kind)
    assert option is not None
    assert option.plan == Plan(1, 16, 32, FRUGAL_OPTIM, embeddings_on_cpu=True)
    assert option.required_bytes < 5.9 * GIBIBYTE
    # Torch may have 5.1 GiB, and needs 0.21 in reserve.
    assert option.breakdown.total + 0.21 * GIBIBYTE < 6 * GIBIBYTE - CONTEXT_BYTES - 0.15 * GIBIBYTE
    assert described(option, 6 * GIBIBYTE).endswith(f"{FRUGAL_OPTIM}, embeddings on the CPU; needs about 5.9 of 6.0 GiB")


def test_embeddings_stay_on_the_card_as_long_as_a_plan_fits_so() -> None:
    for available in (7, 8):
        chosen = choose(under(available), available * GIBIBYTE, "fast")
        assert chosen is not None
        assert not chosen.plan.embeddings_on_cpu
        assert "embeddings" not in described(chosen, available * GIBIBYTE)
    frugal = choose(under(8), 8 * GIBIBYTE, "frugal")
    assert frugal is not None
    assert frugal.plan == Plan(1, 16, 32, FRUGAL_OPTIM, embeddings_on_cpu=True)


def test_what_is_given_up_goes_from_little_to_much() -> None:
    nothing = Breakdown(0, 0, 0, 0, 0, 0, 0, 0)
    kept = Option(Plan(1, 1, 1, "adamw_torch"), nothing, 0, tokens_per_second=1.0)
    smaller = Option(Plan(1, 1, 1, FRUGAL_OPTIM), nothing, 0, tokens_per_second=2.0)
    least = Option(Plan(1, 1, 1, FRUGAL_OPTIM, True), nothing, 0, tokens_per_second=3.0)
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
    assert [(one.plan.checkpointed_layers, one.plan.optim) for one in frugal] == [
        (0 if checkpointing is False else 2, FRUGAL_OPTIM) for _ in frugal
    ]


def test_the_budget_leaves_room_for_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 80 * GIBIBYTE

    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    for budget in (6 * GIBIBYTE, 100 * GIBIBYTE, CONTEXT_BYTES // 2):
        hold_to(budget, torch.device("cuda", 0))
    assert shares == [(6 * GIBIBYTE - CONTEXT_BYTES) / (80 * GIBIBYTE), 1.0, 0.0]
