"""The parts of a trainable model, and the reasons for not using fast layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from llmft_cli.models import random_model
from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.settings.config import resolve
from llmft_cli.training.fast.architectures import keeps_dequantized
from llmft_cli.training.plan import Plan
from llmft_cli.training.step.checkpointing import checkpoint_layers, is_checkpointed
from llmft_cli.training.step.tuned_model import apply_plan, has_room_for_dequantized_weights, make_trainable, why_plain_layers

from ..meta_models import on_meta, small_shape

CPU = torch.device("cpu")
# Of two layers of `small_shape`: query and output, key and value, and the MLP.
LINEAR_WEIGHTS = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({}, None),
        ({"fast": False}, "--no-fast"),
        ({"use_dora": True}, "DoRA and int8 are not supported"),
        ({"lora_dropout": 0.1}, "LoRA dropout"),
    ],
)
def test_the_reason_for_plain_layers(flags: dict[str, Any], reason: str | None) -> None:
    model = make_trainable(random_model.build(small_shape(), CPU, "nf4", torch.bfloat16), resolve(flags), "a model")
    assert why_plain_layers(model, resolve(flags)) == reason


@pytest.mark.parametrize("fast", [True, False])
def test_so_many_layers_are_checkpointed_the_first_ones(fast: bool) -> None:
    model = on_meta(small_shape(4), fast=fast)
    for count, expected in ((0, [False] * 4), (3, [True, True, True, False]), (None, [True] * 4)):
        checkpoint_layers(model, count)
        assert [is_checkpointed(layer) for layer in decoder_layers(model)] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dequantised_weights_may_take_a_quarter_of_the_ram(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_model.build(small_shape(), CPU, "nf4", dtype)
    for too_few, room in ((0, True), (4, False)):
        available = 4 * dtype.itemsize * LINEAR_WEIGHTS - too_few
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: SimpleNamespace(available=available))
        assert has_room_for_dequantized_weights(base) is room


def test_there_is_no_such_room_where_memory_is_planned() -> None:
    base = random_model.build(small_shape(), torch.device("meta"), "nf4", torch.bfloat16)
    assert not has_room_for_dequantized_weights(base)


def test_weights_that_are_kept_dequantised_are_told() -> None:
    for quantization, wanted, kept in (("nf4", True, True), ("nf4", False, False), ("none", True, False)):
        base = random_model.build(small_shape(), CPU, quantization, torch.bfloat16)
        model = make_trainable(base, resolve({}), "a model")
        apply_plan(model, Plan(1, 1, 0, "adamw_torch", dequantized_weights=wanted))
        assert keeps_dequantized(model) is kept
