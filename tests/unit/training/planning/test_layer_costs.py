"""Steps extrapolated from the first layers against whole steps, simulated layer by layer."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.models.known_configs import LLAMA_2_7B
from llmft_cli.training.fast.architectures import offload_activations
from llmft_cli.training.planning.layer_costs import FEW, checkpointed_step, layer_costs, only_layers, signature
from llmft_cli.training.planning.simulation import BatchShape, full_batch, simulate
from llmft_cli.training.step.checkpointing import checkpoint_layers

from ..meta_models import on_meta, shape_of, small_shape


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "targets"), [(5, "all-linear"), (6, "q_proj"), (7, "down_proj"), (8, "o_proj")])
def test_reckoned_steps_are_followed_steps_for_every_number_of_checkpointed_layers(layers: int, targets: str) -> None:
    """Exact in bytes, operations and kernels."""
    model, batch = on_meta(small_shape(layers), target_modules=targets), BatchShape(2, 96, 150, 6, 32)
    costs = layer_costs(model, batch)
    assert costs is not None
    assert costs.layers == layers
    for checkpointed in range(layers + 1):
        checkpoint_layers(model, checkpointed)
        assert costs.step(checkpointed) == simulate(model, batch), checkpointed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "flags", "batch"),
    [
        ({"vocab_size": 20_032}, {}, full_batch(1, 32)),  # logits far above the layers' activations
        ({}, {"lora_dropout": 0.1, "lora_r": 64}, full_batch(4, 128)),
        ({"intermediate_size": 2048}, {"target_modules": "q_proj,v_proj"}, full_batch(2, 64)),
        ({"num_key_value_heads": 4, "tie_word_embeddings": True}, {}, full_batch(1, 512)),
    ],
)
def test_whatever_sets_the_peak(changes: dict[str, Any], flags: dict[str, Any], batch: BatchShape) -> None:
    model = on_meta(small_shape(5, **changes), **flags)
    costs = layer_costs(model, batch)
    assert costs is not None
    for checkpointed in (1, 3):
        checkpoint_layers(model, checkpointed)
        assert costs.step(checkpointed) == simulate(model, batch), checkpointed


def test_the_first_and_the_last_layer_are_unlike_the_others() -> None:
    """Of Llama-2-7B's width, with what layers keep in the host's memory.

    Behind a gradient that goes on to the layer below there is room, which the first layer does not leave and the
    last one does not get. From two and three layers each further one seemed to take a mebibyte more at the peak.
    """
    model, batch = on_meta(shape_of(LLAMA_2_7B | {"num_hidden_layers": 6}), None), full_batch(4, 2048)
    offload_activations(model, True)
    assert checkpointed_step(model, batch) == simulate(model, batch)


def test_too_few_layers_tell_nothing() -> None:
    batch = full_batch(1, 32)
    assert layer_costs(on_meta(small_shape(FEW + 1)), batch) is None
    assert layer_costs(on_meta(small_shape(FEW + 2)), batch) is not None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma3_text", {"sliding_window": 16, "head_dim": 32}),  # every sixth layer sees everything
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}),
        ("smollm3", {"pad_token_id": 0}),  # every fourth layer has no positions
    ],
)
def test_layers_that_attend_differently_are_not_reckoned(kind: str, changes: dict[str, Any]) -> None:
    model = on_meta(small_shape(6, model_type=kind, **changes), fast=False)
    assert len({signature(layer) for layer in decoder_layers(model)}) == 2
    assert layer_costs(model, full_batch(1, 32)) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes", "angles"),
    [
        ("gemma3_text", {"sliding_window": 16, "head_dim": 32}, 2),  # layers that see everything have theirs
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}, 1),
    ],
)
def test_fast_layers_hold_and_do_the_same_in_any_window(kind: str, changes: dict[str, Any], angles: int) -> None:
    """All were followed one by one once: planning a Gemma 3 took four times as long as a Llama.

    To the operation and the kernel, and to the byte but for cosines and sines that none of the first layers uses.
    """
    model, batch = on_meta(small_shape(8, model_type=kind, **changes)), BatchShape(2, 96, 150, 6, 32)
    costs = layer_costs(model, batch)
    assert costs is not None
    unused = (angles - 1) * 2 * batch.tokens * 32 * torch.bfloat16.itemsize
    for checkpointed in range(9):
        checkpoint_layers(model, checkpointed)
        reckoned, followed = costs.step(checkpointed), simulate(model, batch)
        assert astuple(reckoned)[2:] == astuple(followed)[2:], checkpointed
        assert 0 <= followed.peak_bytes - reckoned.peak_bytes <= unused, checkpointed


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "granite", "starcoder2"])
def test_layers_of_common_models_are_alike(kind: str) -> None:
    layers = decoder_layers(on_meta(small_shape(4, model_type=kind)))
    assert len({signature(layer) for layer in layers}) == 1


def test_layers_of_different_weights_are_not_reckoned() -> None:
    model = on_meta(small_shape(5))
    assert len({signature(layer) for layer in decoder_layers(model)}) == 1
    decoder_layers(model)[3].mlp.wider = torch.nn.Linear(128, 512, device="meta")
    assert layer_costs(model, full_batch(1, 32)) is None


def test_an_adapter_on_some_layers_only_is_not_reckoned() -> None:
    model = on_meta(small_shape(5), target_modules="q_proj,v_proj")
    attention = decoder_layers(model)[4].self_attn
    attention.q_proj = attention.q_proj.get_base_layer()
    assert layer_costs(model, full_batch(1, 32)) is None


def test_the_model_is_whole_again_afterwards() -> None:
    model = on_meta(small_shape(5))
    before = decoder_layers(model)
    with only_layers(model, 2):
        assert decoder_layers(model) == before[:2]
    assert decoder_layers(model) == before
    with pytest.raises(KeyError), only_layers(model, 3):
        raise KeyError
    assert decoder_layers(model) == before
    layer_costs(model, full_batch(1, 32))
    assert decoder_layers(model) == before


def test_a_model_is_reckoned_again_after_it_was() -> None:
    """The layers beyond the first ones were once not in training mode, and counted as different layers."""
    model = on_meta(small_shape(5))
    first = layer_costs(model, full_batch(1, 32))
    assert first is not None
    steps = [first.step(checkpointed) for checkpointed in range(6)]
    again = layer_costs(model, full_batch(1, 32))
    assert again is not None
    assert [again.step(checkpointed) for checkpointed in range(6)] == steps
