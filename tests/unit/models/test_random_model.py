"""Models built from a config: weights of the right shapes and types, initialised like transformers'."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("torch")

import bitsandbytes
import torch
import transformers

from llmft_cli.models import known_configs, loading, model_source, random_model

META, CPU = torch.device("meta"), torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def shape_of(values: dict[str, Any]) -> transformers.PreTrainedConfig:
    return transformers.AutoConfig.for_model(**values)


def small(**changes: Any) -> transformers.PreTrainedConfig:
    return shape_of(known_configs.llama(640, 128, 256, 2, 4, 2, 512) | changes)


def build(shape: transformers.PreTrainedConfig, device: torch.device, quantization: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return random_model.build(shape, device, quantization, dtype)


def parameters_of(model: Any) -> int:
    """The number of parameters: 4-bit weights count unpacked, shared ones once."""
    total = 0
    for weights in model.parameters():
        state = getattr(weights, "quant_state", None)
        total += weights.numel() if state is None else math.prod(state.shape)
    return total


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (known_configs.LLAMA_2_7B, 6_738_415_616),
        (known_configs.SMOLLM2_135M, 134_515_008),
    ],
)
def test_shapes_have_the_published_numbers_of_parameters(shape: dict[str, Any], parameters: int, quantization: str) -> None:
    model = build(shape_of(shape), META, quantization, torch.bfloat16)
    assert all(weights.device.type == "meta" for weights in model.parameters())
    assert parameters_of(model) == parameters


@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4"])
def test_a_built_model_computes(quantization: str) -> None:
    model = build(small(), CPU, quantization, torch.bfloat16)
    assert not model.training
    assert not any(weights.requires_grad for weights in model.parameters())
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    assert logits.shape == (1, 6, 640)
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    assert logits.float().std() > 0


def test_what_is_not_random_is_as_transformers_begins_with_it() -> None:
    """Rotary frequencies and norms: wrong values raise no error but make every result wrong."""
    scaled = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    for shape in (small(), small(rope_parameters=scaled), small(model_type="qwen2"), small(model_type="gemma", head_dim=32)):
        model = build(shape, CPU, "nf4", torch.bfloat16)
        reference = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
        assert dict(model.named_buffers()).keys() == dict(reference.named_buffers()).keys()
        for name, values in reference.named_buffers():
            assert torch.equal(model.get_buffer(name), values), name
            assert model.get_buffer(name).dtype == values.dtype, name
        norms = [name for name, _ in reference.named_parameters() if "norm" in name]
        assert len(norms) == 5
        for name in norms:
            assert torch.equal(model.get_parameter(name), reference.get_parameter(name)), name


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_random_weights_have_the_spread_of_a_fresh_model(quantization: str) -> None:
    model = build(small(), CPU, quantization, torch.float32)
    layer = model.model.layers[0].mlp.gate_proj
    weight = layer.weight
    if quantization == "nf4":
        weight = bitsandbytes.functional.dequantize_4bit(weight, weight.quant_state)
    assert weight.shape == (256, 128)
    for values in (weight, model.model.embed_tokens.weight, model.lm_head.weight):
        assert values.float().std().item() == pytest.approx(0.02, rel=0.03)
        assert abs(values.float().mean().item()) < 0.001


@pytest.mark.parametrize(
    ("quantization", "kind", "device"),
    [
        ("nf4", bitsandbytes.nn.Linear4bit, META),
        ("nf4", bitsandbytes.nn.Linear4bit, CPU),
        ("fp4", bitsandbytes.nn.Linear4bit, CPU),
        ("int8", bitsandbytes.nn.Linear8bitLt, CPU),  # on `meta` int8 is not traced, and stays in 16 bits
    ],
)
def test_the_layers_that_are_quantised_are_those_of_a_loaded_model(
    quantization: str, kind: type, device: torch.device, tmp_path: Any
) -> None:
    """All linear layers except the output layer, with the same settings."""
    shape = small()
    transformers.LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(tmp_path)
    source = model_source.ModelSource("small", tmp_path, None, "")
    loaded = loading.load_base(source, CPU, torch.bfloat16, quantization)
    built = build(shape, device, quantization, torch.bfloat16)
    assert type(built.lm_head) is torch.nn.Linear
    of_loaded, of_built = dict(loaded.named_modules()), dict(built.named_modules())
    assert {name: type(module) for name, module in of_built.items()} == {
        name: type(module) for name, module in of_loaded.items()
    }
    assert sum(isinstance(module, kind) for module in of_built.values()) == 2 * 7
    flag = "is_loaded_in_8bit" if quantization == "int8" else "is_loaded_in_4bit"
    assert getattr(built, flag) is getattr(loaded, flag) is True
    for name, weights in loaded.named_parameters():
        made = built.get_parameter(name)
        assert (name, made.shape, made.dtype) == (name, weights.shape, weights.dtype)
        if (state := getattr(weights, "quant_state", None)) is not None:
            ours = made.quant_state
            assert (ours.shape, ours.dtype, ours.quant_type) == (state.shape, state.dtype, state.quant_type)
            assert (ours.blocksize, ours.nested, ours.state2.blocksize) == (state.blocksize, state.nested, 256)
            assert ours.absmax.shape == state.absmax.shape
            assert ours.state2.absmax.shape == state.state2.absmax.shape


@pytest.mark.parametrize("device", [META, CPU])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_tied_embeddings_stay_tied(device: torch.device, quantization: str) -> None:
    tied = build(small(tie_word_embeddings=True), device, quantization, torch.bfloat16)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert tied.lm_head.weight.device == device
    apart = build(small(), device, quantization, torch.bfloat16)
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight


def test_building_on_meta_first_does_not_spoil_what_is_quantised_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes caches its table of 8-bit values on the first device that it quantises on."""
    monkeypatch.setattr(bitsandbytes.functional, "name2qmap", {})
    build(small(), META, "nf4", torch.bfloat16)
    model = build(small(), CPU, "nf4", torch.bfloat16)
    state = model.model.layers[0].self_attn.q_proj.weight.quant_state
    assert state.state2.code.device == CPU
    assert state.state2.code.unique().numel() == 256
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=IDS).logits).all()


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_biases_of_quantised_layers_have_values(quantization: str) -> None:
    """Biases (as in Qwen2's attention) used to stay on `meta`, and products with them gave random memory contents."""
    shape = transformers.Qwen2Config(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    model = random_model.build(shape, torch.device("cpu"), quantization, torch.float32)
    biases = [weights for name, weights in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 3
    assert all(torch.equal(bias, torch.zeros_like(bias, device="cpu")) for bias in biases)
    assert not any(bias.requires_grad for bias in biases)
