"""Plans predicted with the first layers of a model against those predicted with all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.settings.config import Config, resolve
from llmft_cli.training.planning.decide import longest_batches, options_of
from llmft_cli.training.planning.layer_costs import FEW, depth_of
from llmft_cli.training.planning.planned_model import names_a_place, planned_model
from llmft_cli.training.planning.speed import REFERENCE_RATES
from llmft_cli.training.step.tuned_model import make_trainable

from ..meta_models import on_meta, small_shape

DTYPE = torch.bfloat16


def cut_model(shape: transformers.PreTrainedConfig, config: Config) -> Any:
    return planned_model(shape, config, DTYPE, lambda base: make_trainable(base, config, "a model"))


def settings(**flags: Any) -> Config:
    return resolve({"max_seq_length": 64, "batch_size": 2, "gradient_accumulation_steps": 1, "lora_r": 8, **flags})


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"quantization": "none"},
        {"fast": False},
        {"target_modules": "q_proj,lm_head"},  # what is trained, and not in a layer
        {"fast": False, "optim": "adamw_8bit"},
    ],
)
def test_few_layers_give_the_plans_of_all(flags: dict[str, Any]) -> None:
    """At every memory limit: with all layers checkpointed, some, and none."""
    config, shape = settings(**flags), small_shape(9)
    whole = on_meta(shape, **flags, lora_r=8)
    few = cut_model(shape, config)
    assert (len(decoder_layers(few)), depth_of(few), depth_of(whole)) == (FEW + 1, 9, 9)
    unlimited = options_of(whole, config, longest_batches(config), None, REFERENCE_RATES)
    required = sorted(option.required_bytes for option in unlimited)
    for limit in (None, required[0], required[len(required) // 2], required[-1] - 1):
        expected = options_of(whole, config, longest_batches(config), limit, REFERENCE_RATES)
        assert options_of(few, config, longest_batches(config), limit, REFERENCE_RATES) == expected


@pytest.mark.parametrize(
    ("shape", "flags", "layers"),
    [
        (small_shape(4), {}, 4),  # too few to tell
        (small_shape(6, model_type="qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=3), {}, 6),
        (small_shape(6), {"target_modules": "layers.4.self_attn.q_proj"}, 6),
    ],
)
def test_models_whose_layers_differ_stay_whole(
    shape: transformers.PreTrainedConfig, flags: dict[str, Any], layers: int
) -> None:
    model = cut_model(shape, settings(**flags))
    assert (len(decoder_layers(model)), depth_of(model)) == (layers, layers)


def test_a_model_is_whole_if_its_layers_differ_only_with_their_adapter() -> None:
    def last_one_trained(base: Any) -> Any:
        model = make_trainable(base, config, "a model")
        decoder_layers(model)[-1].more = torch.nn.Linear(8, 8, device="meta")
        return model

    config = settings(fast=False)
    model = planned_model(small_shape(6), config, DTYPE, last_one_trained)
    assert (len(decoder_layers(model)), depth_of(model)) == (6, 6)


@pytest.mark.parametrize(
    ("targets", "expected"), [("all-linear", False), ("q_proj,o_proj", False), ("layers.11.mlp.up_proj", True), ("w2", False)]
)
def test_names_of_one_layer(targets: str, expected: bool) -> None:
    assert names_a_place(settings(target_modules=targets)) is expected
