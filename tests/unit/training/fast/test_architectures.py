"""Which models have fast layers, and what becomes of a model that gets them."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.training.fast import architectures
from llmft_cli.training.fast.architectures import blocks_of, held_tensors, keep_dequantized, use_fast_layers, why_not_fast

from .layer_models import TYPES, gradients, positions, tuned

TOKENS = torch.arange(48).view(2, 24)


class OtherLayer(LlamaDecoderLayer):
    """Like one from a model's repository."""


class OtherLinear(torch.nn.Linear):
    """As other ways of quantising have one."""


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("model_type", TYPES)
def test_known_models_are_fast(model_type, quantization):
    assert why_not_fast(tuned(model_type, quantization)) is None


@pytest.mark.parametrize(
    ("model_type", "changes", "flags", "reason"),
    [
        ("gemma2", {}, {}, "models of type gemma2 are not supported"),
        ("llama", {"hidden_act": "gelu"}, {}, "activation gelu"),
        ("gemma3_text", {"hidden_activation": "gelu"}, {}, "activation gelu"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, {}, "capped logits"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, {}, "capped logits"),
        ("gemma3_text", {"use_bidirectional_attention": True}, {}, "bidirectional attention"),
        ("llama", {"hidden_size": 96}, {}, "sizes that are not multiples of 64"),
        ("llama", {"intermediate_size": 100}, {}, "sizes that are not multiples of 64"),
        ("qwen3", {"head_dim": 24}, {}, "sizes that are not multiples of 64"),
        ("phi3", {"partial_rotary_factor": 0.5}, {}, "partial rotary embeddings"),
        ("phi3", {"resid_pdrop": 0.1}, {}, "dropout in the base model"),
        ("llama", {"attention_dropout": 0.1}, {}, "dropout in the base model"),
        ("llama", {}, {"lora_dropout": 0.1}, "LoRA dropout"),
        ("llama", {"attn_implementation": "eager"}, {}, "eager attention"),
    ],
    ids=str,
)
def test_what_a_config_or_a_setting_keeps_from_the_fast_path(model_type, changes, flags, reason):
    assert why_not_fast(tuned(model_type, changes=changes, **flags)) == reason


def base_of(model):
    return model.get_base_model()


def with_bias(model):
    base_of(model).lm_head.bias = torch.nn.Parameter(torch.zeros(96), requires_grad=False)


def with_other_layer(model):
    base_of(model).model.layers[1].__class__ = OtherLayer


def with_other_linear(model):
    base_of(model).model.layers[1].mlp.down_proj.get_base_layer().__class__ = OtherLinear


def with_trained_norm(model):
    base_of(model).model.norm.weight.requires_grad_()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_bias, "an output layer with a bias"),
        (with_other_layer, "layers of type OtherLayer, not the standard ones of llama"),
        (with_other_linear, "linear layers of type OtherLinear"),
        (with_trained_norm, "base_model.model.model.norm.weight is trainable"),
    ],
)
def test_what_of_a_model_itself_keeps_it_from_the_fast_path(change, reason):
    model = tuned("llama")
    change(model)
    assert why_not_fast(model) == reason


def test_an_adapter_of_the_output_layer_is_not_fast():
    model = tuned("llama", target_modules="q_proj,lm_head", changes={"tie_word_embeddings": False})
    assert why_not_fast(model).startswith("base_model.model.lm_head.lora_A")


@pytest.mark.parametrize(("triton", "reason"), [(False, "no Triton"), (True, None)])
def test_a_gpu_needs_triton(monkeypatch, triton, reason):
    model = tuned("llama")
    parameters = model.named_parameters
    monkeypatch.setattr(model, "parameters", lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    monkeypatch.setattr(model, "named_parameters", parameters)
    monkeypatch.setattr(architectures, "has_triton", lambda device: triton)
    assert why_not_fast(model) == reason


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("model_type", TYPES)
def test_without_gradients_a_model_computes_what_it_did(model_type, quantization):
    model = tuned(model_type, quantization)
    weights = {name: values.clone() for name, values in model.state_dict().items()}
    with torch.no_grad():
        expected = model.eval()(input_ids=TOKENS, position_ids=positions(), use_cache=False).logits
        use_fast_layers(model)
        found = model(input_ids=TOKENS, position_ids=positions(), use_cache=False).logits
    assert torch.equal(found, expected)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(values, weights[name]) for name, values in model.state_dict().items())


def test_text_is_written_as_before():
    """With the cache of keys and values, which fast layers know nothing of."""
    model = tuned("qwen3", "nf4").eval()
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(TOKENS[:, :6], **options)
    use_fast_layers(model)
    gradients(model)
    assert torch.equal(model.generate(TOKENS[:, :6], **options), expected)
    assert expected.shape == (2, 14)


def test_a_dense_model_holds_its_weights_once():
    model = tuned("llama")
    use_fast_layers(model)
    for layer in decoder_layers(model):
        kept = {linear.kept.untyped_storage().data_ptr() for linear in architectures.block_of(layer).linears}
        linears = list(architectures.linears_of(layer))
        assert {linear.get_base_layer().weight.untyped_storage().data_ptr() for linear in linears} == kept
        assert len(linears) == 7


def test_layers_share_one_workspace_for_dequantized_weights():
    model = tuned("llama", "nf4")
    use_fast_layers(model)
    blocks = blocks_of(model)
    assert len({block.workspace.data_ptr() for block in blocks}) == 1
    assert blocks[0].workspace.numel() == max(linear.size for linear in blocks[0].linears)
    keep_dequantized(model, True)
    assert all(block.workspace.numel() == 0 for block in blocks)
    assert all(linear.kept is not None for block in blocks for linear in block.linears)
    keep_dequantized(model, False)
    assert all(linear.kept is None for block in blocks for linear in block.linears)
    assert blocks[1].workspace.numel() == max(linear.size for linear in blocks[0].linears)


def test_what_a_layer_holds_beside_its_weights():
    model = tuned("qwen3", "nf4")
    assert list(held_tensors(decoder_layers(model)[0])) == []
    use_fast_layers(model)
    layer = decoder_layers(model)[0]
    block = architectures.block_of(layer)
    names = [block.workspace, block.input_norm, block.attention_norm, block.head_norms]
    assert {id(tensor) for tensor in held_tensors(layer)} == {id(tensor) for tensor in names}
    keep_dequantized(model, True)
    held = {id(tensor) for tensor in held_tensors(layer)}
    assert held >= {id(linear.kept) for linear in block.linears}


def test_norms_as_kernels_take_them():
    """Gemma's multiply with 1 + weight in fp32; those of Qwen3's heads differ between queries and keys."""
    for model_type in ("gemma", "qwen3"):
        model = tuned(model_type, dtype=torch.bfloat16)
        use_fast_layers(model)
        layer, block = decoder_layers(model)[1], blocks_of(model)[1]
        weight = layer.post_attention_layernorm.weight
        if model_type == "gemma":
            assert block.head_norms is None
            assert torch.equal(block.attention_norm, 1 + weight.float())
        else:
            assert block.attention_norm.data_ptr() == weight.data_ptr()
            expected = [layer.self_attn.q_norm.weight] * 4 + [layer.self_attn.k_norm.weight] * 2
            assert torch.equal(block.head_norms, torch.stack(expected))


def test_gemma_3s_norms_are_before_and_behind_attention_and_mlp():
    model = tuned("gemma3_text", dtype=torch.bfloat16)
    use_fast_layers(model)
    layer, block = decoder_layers(model)[1], blocks_of(model)[1]
    assert torch.equal(block.input_norm, 1 + layer.input_layernorm.weight.float())
    assert torch.equal(block.attention_output_norm, 1 + layer.post_attention_layernorm.weight.float())
    assert torch.equal(block.attention_norm, 1 + layer.pre_feedforward_layernorm.weight.float())
    assert torch.equal(block.mlp_output_norm, 1 + layer.post_feedforward_layernorm.weight.float())
    heads = [layer.self_attn.q_norm.weight] * 4 + [layer.self_attn.k_norm.weight] * 2
    assert torch.equal(block.head_norms, 1 + torch.stack(heads).float())
    assert {id(tensor) for tensor in held_tensors(layer)} >= {id(block.attention_output_norm), id(block.mlp_output_norm)}


@pytest.mark.parametrize(
    ("model_type", "changes", "windows"),
    [
        ("llama", {}, [None, None]),
        ("llama", {"sliding_window": 5}, [None, None]),  # a key of the config that Llama does not know
        ("gemma", {}, [None, None]),
        ("gemma3_text", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}, [5, None]),
        ("mistral", {"sliding_window": 5}, [5, 5]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("phi3", {"sliding_window": 5}, [5, 5]),
        ("qwen2", {"sliding_window": 5}, [None, None]),  # not without use_sliding_window
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, [None, 5]),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, [None, 5]),
    ],
    ids=str,
)
def test_attention_is_told_what_the_module_itself_tells_it(model_type, changes, windows):
    told = []

    def spy(module, query, key, value, attention_mask, **options):
        told.append({"shapes": (query.shape, key.shape, value.shape), **options})
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    transformers.AttentionInterface.register("told", spy)
    AttentionMaskInterface.register("told", sdpa_mask)
    model = tuned(model_type, changes={**changes, "attn_implementation": "told"})
    gradients(model)
    plain = [comparable(options) for options in told]
    told.clear()
    use_fast_layers(model)
    gradients(model)
    assert [comparable(options) for options in told] == plain
    assert [options["sliding_window"] for options in plain] == windows


def comparable(options):
    known = {"shapes", "dropout", "scaling", "sliding_window"}
    return {"sliding_window": None, **{name: value for name, value in options.items() if name in known}}
