"""Fast layers against transformers' and PEFT's own: losses and the gradients of everything that has one."""

import copy
from functools import cache

import pytest
import torch

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.training.fast.architectures import (
    blocks_of,
    keep_dequantized,
    offload_activations,
    use_fast_layers,
    why_not_fast,
)
from llmft_cli.training.fast.joined_linear import JoinedLinear
from llmft_cli.training.step.lora_product import use_fused_products

from .layer_models import HIDDEN, TYPES, distance, gradients, positions, small_config, some_targets, tuned

CLOSE = 2e-5  # in fp32, where sums are of another order


@cache
def plain(model_type, quantization, targets):
    """A model and what its training step gives, for several tests to copy."""
    model = tuned(model_type, quantization, target_modules=targets)
    return model, *gradients(model)


def made_fast(model, recompute=False, kept=False):
    assert why_not_fast(model) is None
    use_fast_layers(model)
    keep_dequantized(model, kept)
    for block in blocks_of(model):
        block.recompute = recompute
    return model


def assert_same(model, expected_loss, expected, tolerance=CLOSE):
    loss, found = gradients(model)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert distance(found[name], gradient) <= tolerance, name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("quantization", "kept"), [("none", False), ("nf4", False), ("nf4", True)])
@pytest.mark.parametrize("all_linear", [True, False])
@pytest.mark.parametrize("model_type", TYPES)
def test_losses_and_gradients_are_the_plain_paths(model_type, all_linear, quantization, kept, recompute):
    model, loss, expected = plain(model_type, quantization, "all-linear" if all_linear else some_targets(model_type))
    assert_same(made_fast(copy.deepcopy(model), recompute, kept), loss, expected)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("gemma", {"attention_bias": True, "num_key_value_heads": 1}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
        ("gemma3_text", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
        ("gemma3_text", {"query_pre_attn_scalar": 7}),
        ("mistral", {"sliding_window": 5}),
        ("phi3", {"sliding_window": 5}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    ],
    ids=str,
)
def test_what_a_config_changes_in_a_layer_is_computed(model_type, changes):
    model = tuned(model_type, changes=changes)
    loss, expected = gradients(model)
    assert_same(made_fast(model), loss, expected)
    without = tuned(model_type, changes={name: getattr(small_config(model_type), name) for name in changes})
    assert gradients(without)[0] != pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_rows_do_not_see_each_other(model_type, recompute):
    model = made_fast(tuned(model_type), recompute)
    hidden = torch.randn(2, 24, HIDDEN, requires_grad=True)
    model(inputs_embeds=hidden, position_ids=positions(), use_cache=False).logits[:, 15:].float().square().sum().backward()
    assert hidden.grad[:, :15].norm() == 0
    assert hidden.grad[:, 15:].norm(dim=-1).min() > 0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", "down_proj", "o_proj", "k_proj"])
def test_a_first_layer_whose_input_needs_no_gradient(targets, recompute):
    model = tuned("qwen3", "nf4", target_modules=targets)
    fast = made_fast(copy.deepcopy(model), recompute)
    ids = torch.arange(48).view(2, 24)
    for one in (model, fast):
        one(input_ids=ids, position_ids=positions(), labels=ids, use_cache=False).loss.backward()
    expected = dict(model.named_parameters())
    trained = [(name, weights) for name, weights in fast.named_parameters() if weights.requires_grad]
    assert trained
    for name, weights in trained:
        assert distance(weights.grad, expected[name].grad) <= CLOSE, name


def test_adapters_have_the_values_of_now_in_every_step():
    """The matrix that a dense layer keeps has copies of them, and an optimizer knows nothing of it."""
    model = tuned("llama")
    fast = made_fast(copy.deepcopy(model))
    gradients(fast)
    generator = torch.Generator().manual_seed(2)
    for weights, own in zip(model.parameters(), fast.parameters(), strict=True):
        if weights.requires_grad:
            weights.data += torch.randn(weights.shape, generator=generator) / 10
            own.data.copy_(weights.data)
    assert_same(fast, *gradients(model))


def test_layers_may_differ_in_what_they_keep():
    model, loss, expected = plain("llama", "nf4", "all-linear")
    fast = made_fast(copy.deepcopy(model))
    blocks_of(fast)[0].recompute = True
    assert_same(fast, loss, expected)


@pytest.mark.parametrize("checkpointed", [1, 2])
def test_what_is_offloaded_comes_back(checkpointed):
    """Also where the last layer keeps everything, and in a second pass."""
    model = tuned("llama", "nf4")
    fast = made_fast(copy.deepcopy(model))
    for block in blocks_of(fast)[:checkpointed]:
        block.recompute = True
    offload_activations(fast, True)
    for _ in range(2):
        assert_same(fast, *gradients(model))


def test_gradients_are_added_up_over_micro_batches():
    model, _, expected = plain("llama", "none", "all-linear")
    fast = made_fast(copy.deepcopy(model))
    gradients(fast)
    fast.zero_grad = lambda: None
    _, twice = gradients(fast)
    for name, gradient in expected.items():
        assert distance(twice[name], gradient if name == "hidden" else 2 * gradient) <= CLOSE, name


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_bf16_rounds_no_more_than_the_plain_path(model_type, recompute):
    """The plain path with fused products, which rounds adapters to the model's type, too; PEFT multiplies them in fp32."""
    model = tuned(model_type, dtype=torch.bfloat16)
    expected = gradients(copy.deepcopy(model).float())[1]
    fused = copy.deepcopy(model)
    use_fused_products(fused, torch.bfloat16)
    _, rounded = gradients(fused)
    _, found = gradients(made_fast(model, recompute))

    def error(those):
        return torch.tensor([distance(those[name], expected[name]) for name in expected]).square().mean().sqrt()

    assert 1e-3 < error(found) <= 1.1 * error(rounded)


def test_gradients_are_copied_for_no_layer_but_the_last(monkeypatch):
    """A layer leaves room behind the gradient of its input, which the layer below wants there."""
    copied = []

    def with_room(linear, rows):
        wide = original(linear, rows)
        copied.append(wide.data_ptr() != rows.data_ptr())
        return wide

    original = JoinedLinear.with_room
    monkeypatch.setattr(JoinedLinear, "with_room", with_room)
    model = made_fast(tuned("llama"))
    gradients(model)
    # `down` and then `o` of each layer
    assert copied == [True] + [False] * (2 * len(decoder_layers(model)) - 1)


def test_what_a_layer_keeps_until_its_backward_pass():
    """Beside the layer's input: queries, keys and values, what the attention gave, the stream after it, gate and up."""
    model = made_fast(tuned("llama"))
    block = blocks_of(model)[0]
    layer = decoder_layers(model)[0]
    hidden = torch.randn(1, 10, HIDDEN)
    angles = torch.randn(2, 1, 10, 16).unbind()
    for recompute in (False, True):
        block.recompute = recompute
        outputs = layer(hidden, attention_mask=None, position_embeddings=angles)
        context = outputs.grad_fn
        assert [tensor.shape for tensor in context.saved_tensors] == [(10, HIDDEN)]
        assert (context.kept is None) == recompute
    block.recompute = False
    outputs = layer(hidden, attention_mask=None, position_embeddings=angles)
    kept = outputs.grad_fn.kept
    attention, mlp = (
        {name: tuple(value.shape) for name, value in vars(part).items() if isinstance(value, torch.Tensor)} for part in kept
    )
    assert attention == {
        "qkv": (10, 128 + 16),
        "attended": (10, 64),
        "scales": (10,),
        "qkv_projected": (10, 16),
        "o_projected": (10, 16),
    }
    assert mlp == {
        "inputs": (10, 64),
        "gate_up": (10, 256 + 16),
        "scales": (10,),
        "gate_up_projected": (10, 16),
        "down_projected": (10, 16),
    }
