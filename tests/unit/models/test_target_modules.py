"""Modules that cannot have an adapter are refused on the model without its weights."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmft_cli.base.errors import ConfigError
from llmft_cli.models.adapters import add_adapter
from llmft_cli.models.target_modules import check_target_modules, ranks_of
from llmft_cli.settings.config import resolve

SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1}
LINEARS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def on_meta(tied: bool = True, model_type: str = "llama", **values: Any) -> Any:
    sizes = SIZES if model_type == "llama" else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, tie_word_embeddings=tied, **(sizes | values)))
    model.tie_weights()
    return model


def check(targets: str, **options: Any) -> None:
    check_target_modules(on_meta(**options), resolve({"target_modules": targets, "model": "some/model"}))


def test_a_name_that_matches_nothing_is_refused_even_beside_one_that_does() -> None:
    """`q_proj,v_projj` adapted q_proj alone, and said nothing."""
    with pytest.raises(ConfigError) as raised:
        check("q_proj,v_projj")
    assert raised.value.message == "--target-modules v_projj matches no module of some/model"
    assert raised.value.hint == f"did you mean v_proj? --target-modules takes {LINEARS}, or all-linear"


def test_a_name_unlike_all_others_gets_the_list_alone() -> None:
    with pytest.raises(ConfigError) as raised:
        check("xyz", tied=False)
    assert raised.value.hint == f"--target-modules takes embed_tokens, {LINEARS}, lm_head, or all-linear"


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_tied_embeddings_are_refused(target: str) -> None:
    """Such a training took hours, and then its adapter could not be merged."""
    with pytest.raises(ConfigError) as raised:
        check(f"q_proj,{target}")
    assert raised.value.message == (
        f"--target-modules {target}: the input embeddings and the output layer of some/model share their weight "
        "(tie_word_embeddings), so neither can have an adapter of its own"
    )
    assert raised.value.hint == f"omit {target}; --target-modules all-linear adapts every other linear layer"


def test_tied_embeddings_are_known_by_the_weight_not_by_their_name() -> None:
    with pytest.raises(ConfigError, match="--target-modules wte: the input embeddings and the output layer"):
        check("wte", model_type="gpt2", n_layer=1, n_embd=64, n_head=2)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mlp", "--target-modules mlp matches model.layers.0.mlp, a LlamaMLP, which cannot have an adapter"),
        ("norm", "--target-modules norm matches model.norm, a LlamaRMSNorm, which cannot have an adapter"),
    ],
)
def test_modules_without_a_lora_layer_are_refused(target: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(target)
    assert raised.value.message == said


def test_routers_are_refused_by_name_too() -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "hidden_size": 64, "intermediate_size": 64}
    with pytest.raises(ConfigError, match=r"which cannot have an adapter|matches no module"):
        check("router", model_type="gpt_oss", num_hidden_layers=1, vocab_size=128, head_dim=32, **sizes)


@pytest.mark.parametrize(
    "targets", ["q_proj,lm_head", "embed_tokens", "model.layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"]
)
def test_what_can_be_adapted_passes(targets: str) -> None:
    check(targets, tied=False)
    check("all-linear")


def test_the_rank_of_an_update_is_that_of_its_layer() -> None:
    model, settings = on_meta(), resolve({})
    assert sorted(set(ranks_of(model, settings))) == [32, 64]
    assert ranks_of(model, resolve({"target_modules": "k_proj"})) == [32, 32]


def test_an_adapter_is_refused_the_same_way() -> None:
    """Where `gpu-check` builds the model on `meta`, and for a model with weights."""
    with pytest.raises(ConfigError, match="--target-modules v_projj matches no module of"):
        add_adapter(on_meta(), resolve({"target_modules": "v_projj"}), "m")
