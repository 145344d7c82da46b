"""The fused LoRA product against PEFT's own layer, and against the formula in double precision."""

import copy

import pytest
import torch

from llmft_cli.base.reporter import Silent
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import resolve
from llmft_cli.training.fast.joined_linear import JoinedLinear, Member
from llmft_cli.training.step.lora_product import LoraProduct, use_fused_products

TOKENS = torch.tensor([[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26]])


def tuned(tiny_model_dir, quantization, dtype, **flags):
    """A model with an adapter whose B matrices are not zero, as they are in the middle of a training."""
    torch.manual_seed(0)
    base = loading.load_base(model_source.resolve(str(tiny_model_dir), Silent()), torch.device("cpu"), dtype, quantization)
    loading.keep_training_layout(base)
    model = add_adapter(base, resolve(flags), "tiny").train()
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    return model


def gradients(model):
    model.zero_grad()
    loss = model(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    return loss.item(), {name: weights.grad.clone() for name, weights in model.named_parameters() if weights.requires_grad}


@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4"])
@pytest.mark.parametrize("flags", [{}, {"target_modules": "q_proj,down_proj"}, {"use_rslora": True, "lora_r": 4}])
def test_losses_and_gradients_are_pefts(tiny_model_dir, quantization, flags):
    model = tuned(tiny_model_dir, quantization, torch.float32, **flags)
    fused = copy.deepcopy(model)
    use_fused_products(fused, torch.float32)
    loss, expected = gradients(model)
    found_loss, found = gradients(fused)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("bias", [0.0, 8.0])
def test_a_small_update_is_not_rounded_away(bias):
    """Added to a base output that was rounded to 16 bits before, half of an update of a thousandth was lost.

    How much is there of what the adapter adds is seen in the whole of it: it is lost in rounding here and there.
    """
    torch.manual_seed(0)
    base = torch.nn.Linear(256, 512, dtype=torch.bfloat16).requires_grad_(False)
    base.bias.fill_(bias)
    inputs = torch.randn(300, 256, dtype=torch.bfloat16)
    lora_a, lora_b = torch.randn(8, 256) / 16, 1e-3 * torch.randn(512, 8) / 8**0.5
    linear = JoinedLinear([Member(base, lora_a, lora_b, 0.5)], torch.bfloat16)
    found = LoraProduct.apply(inputs, inputs, linear, lora_a, lora_b)
    exact = torch.nn.functional.linear(inputs.double(), base.weight.double(), base.bias.double())
    update = 0.5 * inputs.double() @ lora_a.double().t() @ lora_b.double().t()
    there = ((found.double() - exact) * update).sum() / update.square().sum()
    assert there.item() == pytest.approx(1, abs=0.1)


def test_without_gradients_a_layer_computes_what_peft_computes(tiny_model_dir):
    model = tuned(tiny_model_dir, "nf4", torch.bfloat16)
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
        use_fused_products(model, torch.bfloat16)
        assert torch.equal(model(input_ids=TOKENS).logits, expected)


def test_inputs_of_another_type_keep_pefts_product(tiny_model_dir):
    """bitsandbytes' layers take any type; the product of one function has that of the model."""
    layer = tuned(tiny_model_dir, "nf4", torch.bfloat16).base_model.model.model.layers[0].mlp.gate_proj
    model = torch.nn.ModuleList([layer])
    inputs = torch.randn(2, 6, 64)
    expected = layer(inputs)
    use_fused_products(model, torch.bfloat16)
    assert torch.equal(layer(inputs), expected)
    assert layer(inputs.bfloat16()).dtype == torch.bfloat16


def test_weights_that_are_not_quantised_are_never_copied(tiny_model_dir):
    """They stand where the product wants them, with room for the adapter around, shared ones too."""
    model = tuned(tiny_model_dir, "none", torch.float32, target_modules="q_proj,lm_head")
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    use_fused_products(model, torch.float32)
    gradients(model)
    for name, weights in model.named_parameters():
        assert torch.equal(weights, before[name]), name
    base = model.base_model.model.model.layers[0].self_attn.q_proj.get_base_layer()
    assert base.weight.untyped_storage().nbytes() == (64 + 16) * (64 + 16) * 4


def test_dropout_is_on_the_adapters_input_alone(tiny_model_dir):
    model = tuned(tiny_model_dir, "nf4", torch.float32, lora_dropout=0.5)
    fused = copy.deepcopy(model)
    use_fused_products(fused, torch.float32)
    torch.manual_seed(7)
    loss, expected = gradients(model)
    torch.manual_seed(7)
    found_loss, found = gradients(fused)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_the_formula_of_gradients():
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5).double().requires_grad_(False)
    inputs, lora_a, lora_b = (torch.randn(size, dtype=torch.double, requires_grad=True) for size in ((3, 4, 6), (2, 6), (5, 2)))
    linear = JoinedLinear([Member(base, lora_a, lora_b, 1.5)], torch.double)
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, x, linear, a, b), (inputs, lora_a, lora_b))
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, x * 2, linear, a, b), (inputs, lora_a, lora_b))


def test_a_layer_keeps_its_input_and_the_product_of_the_rank(tiny_model_dir):
    model = tuned(tiny_model_dir, "nf4", torch.bfloat16)
    layer = model.base_model.model.model.layers[0].mlp.gate_proj
    use_fused_products(model, torch.bfloat16)
    inputs = torch.randn(2, 6, 64, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(inputs)
    shapes = sorted(tuple(tensor.shape) for tensor in kept)
    assert shapes == [(12, 64), (12, 64)]  # the second one padded, as in fast layers


def test_layers_that_are_not_linear_keep_pefts_product():
    """GPT-2's Conv1D multiplies with its weight as it is, not transposed: where it is square, nothing would have complained."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0))
    settings = LoraConfig(target_modules=["c_proj", "wte"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(base.requires_grad_(False), settings).train()
    loss, expected = gradients(model)
    use_fused_products(model, torch.float32)
    found_loss, found = gradients(model)
    assert found_loss == loss
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
