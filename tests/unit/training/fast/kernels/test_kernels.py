"""The torch kernels against transformers' modules and autograd; the other implementations have the same signatures."""

import ast
import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from llmft_cli.base.libraries import import_bitsandbytes
from llmft_cli.settings.compute_types import ALL_ABILITIES
from llmft_cli.training.fast.kernels import counted, interface, plain, select
from llmft_cli.training.fast.output_loss import FP16_FACTOR
from llmft_cli.training.planning.simulation import StepCounter

from ..layer_models import distance

TOKENS, SIZE, DIM, EPSILON = 7, 96, 16, 1e-3
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
NORMS = pytest.mark.parametrize("norm_class", [LlamaRMSNorm, GemmaRMSNorm])
NAMES = [name for name in vars(interface.Kernels) if not name.startswith("_")]


@pytest.fixture(autouse=True)
def drawn_alike():
    torch.manual_seed(0)


def strided(*shape, dtype=torch.float32):
    """Random values in rows with padding between them."""
    return torch.randn(*shape[:-1], shape[-1] + 24).to(dtype)[..., : shape[-1]]


def tolerance(dtype):
    """A single rounding has a relative error of at most 2^-9 in bf16, and 2^-12 in fp16."""
    return {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]


def norm_of(norm_class, dtype, size=SIZE):
    """A norm as transformers has it, and its weight as `rms_norm` takes it."""
    norm = norm_class(size, eps=EPSILON)
    norm.weight.data = (norm.weight.data + torch.randn(size) / 4).to(dtype)
    weight = norm.weight.detach()
    return norm, 1 + weight.float() if norm_class is GemmaRMSNorm else weight


def scales_of(inputs):
    """1 / rms, as `rms_norm` gives it."""
    return (inputs.float().square().mean(-1) + EPSILON) ** -0.5


def angles(dtype, scale=1.0):
    """Cosines and sines of each token, as a rotary embedding makes them."""
    values = torch.randn(TOKENS, DIM // 2).repeat(1, 2)
    return (scale * values.cos()).to(dtype), (scale * values.sin()).to(dtype)


def rotated(heads, cosines, sines):
    """transformers' rotation of (tokens, heads, dim)."""
    turned, _ = apply_rotary_pos_emb(heads[None], heads[None], cosines[None], sines[None], unsqueeze_dim=2)
    return turned[0]


def gradient_of(function, inputs, gradients):
    """In fp32."""
    leaf = inputs.detach().float().requires_grad_()
    function(leaf).backward(gradients.float())
    return leaf.grad


@TYPES
@NORMS
def test_rms_norm_is_the_modules(norm_class, dtype):
    norm, weight = norm_of(norm_class, dtype)
    inputs, outputs = strided(TOKENS, SIZE, dtype=dtype), strided(TOKENS, SIZE, dtype=dtype)
    before, scales = inputs.clone(), torch.empty(TOKENS)
    plain.rms_norm(inputs, weight, EPSILON, outputs, scales)
    assert torch.equal(outputs, norm(inputs))
    assert torch.allclose(scales, scales_of(inputs))
    assert torch.equal(inputs, before)


@TYPES
@NORMS
def test_add_rms_norm_adds_to_its_inputs(norm_class, dtype):
    norm, weight = norm_of(norm_class, dtype)
    inputs, residual, outputs = (strided(TOKENS, SIZE, dtype=dtype) for _ in range(3))
    total, scales = inputs + residual, torch.empty(TOKENS)
    plain.add_rms_norm(inputs, residual, weight, EPSILON, outputs, scales)
    assert torch.allclose(scales, scales_of(total))
    assert torch.equal(inputs, total)
    assert torch.equal(outputs, norm(total))


@TYPES
@NORMS
@pytest.mark.parametrize("in_place", [False, True])
def test_the_gradient_of_a_norm_is_autograds(norm_class, in_place, dtype):
    norm, weight = norm_of(norm_class, dtype)
    inputs, gradients, residual = (strided(TOKENS, SIZE, dtype=dtype) for _ in range(3))
    expected = residual.float() + gradient_of(norm.float(), inputs, gradients)
    outputs = gradients if in_place else strided(TOKENS, SIZE, dtype=dtype)
    plain.rms_norm_backward(gradients, inputs, weight, scales_of(inputs), residual, outputs)
    assert distance(outputs, expected) <= tolerance(dtype)


@TYPES
@pytest.mark.parametrize(("activation", "name"), [("silu", "silu"), ("gelu_tanh", "gelu_pytorch_tanh")])
def test_gated_activations(activation, name, dtype):
    gate_up, outputs = 2 * strided(TOKENS, 2 * SIZE, dtype=dtype), strided(TOKENS, SIZE, dtype=dtype)
    plain.gated(gate_up, activation, outputs)
    assert torch.equal(outputs, ACT2FN[name](gate_up[:, :SIZE]) * gate_up[:, SIZE:])


@TYPES
@pytest.mark.parametrize(("activation", "name"), [("silu", "silu"), ("gelu_tanh", "gelu_pytorch_tanh")])
def test_the_gradient_of_a_gated_activation_is_autograds(activation, name, dtype):
    gate_up, gradients = 2 * strided(TOKENS, 2 * SIZE, dtype=dtype), strided(TOKENS, SIZE, dtype=dtype)
    expected = gradient_of(lambda both: ACT2FN[name](both[:, :SIZE]) * both[:, SIZE:], gate_up, gradients)
    given = torch.empty(TOKENS, SIZE, dtype=dtype)
    plain.gated(gate_up, activation, given)
    plain.gated_backward(gate_up, activation, gradients)
    assert distance(gate_up, expected) <= tolerance(dtype)
    assert torch.equal(gradients, given)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_far_from_zero_have_the_slopes_of_their_limits(activation):
    gate_up = torch.tensor([[-1e4, -60.0, 60.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    plain.gated_backward(gate_up, activation, torch.ones(1, 4))
    assert gate_up[0].tolist() == pytest.approx([0, 0, 1, 1, 0, 0, 60, 1e4], abs=1e-20)


@TYPES
def test_heads_are_rotated_as_transformers_does_it(dtype):
    source, target = strided(TOKENS, 3 * DIM, dtype=dtype), strided(TOKENS, 3 * DIM, dtype=dtype)
    cosines, sines = angles(dtype)
    expected = rotated(source.view(TOKENS, 3, DIM), cosines, sines).flatten(1)
    plain.rotate(source, target, cosines, sines, backward=False)
    assert torch.equal(target, expected)
    plain.rotate(source, source, cosines, sines, backward=False)
    assert torch.equal(source, expected)


@TYPES
def test_the_gradient_of_a_rotation_is_the_rotation_back(dtype):
    """Of a scaled one, too, as YaRN's and Phi-3's long rotary embeddings are."""
    gradients, target = strided(TOKENS, 3 * DIM, dtype=dtype), strided(TOKENS, 3 * DIM, dtype=dtype)
    cosines, sines = angles(dtype, scale=1.25)

    def turn(rows):
        return rotated(rows.view(TOKENS, 3, DIM), cosines.float(), sines.float()).flatten(1)

    plain.rotate(gradients, target, cosines, sines, backward=True)
    assert distance(target, gradient_of(turn, gradients, gradients)) <= tolerance(dtype)


def head_norms(dtype):
    """Of one head each, as modules and as `norm_rotate` takes them."""
    norms, weights = zip(*(norm_of(Qwen3RMSNorm, dtype, DIM) for _ in range(3)), strict=True)
    return norms, torch.stack(weights)


def normalised_and_rotated(norms, cosines, sines, rows):
    heads = rows.view(TOKENS, 3, DIM)
    normalised = torch.stack([norm(heads[:, number]) for number, norm in enumerate(norms)], 1)
    return rotated(normalised, cosines, sines).flatten(1)


@TYPES
def test_heads_are_normalised_before_they_are_rotated(dtype):
    source, target = strided(TOKENS, 3 * DIM, dtype=dtype), strided(TOKENS, 3 * DIM, dtype=dtype)
    (norms, weights), (cosines, sines), before = head_norms(dtype), angles(dtype), source.clone()
    plain.norm_rotate(source, target, weights, EPSILON, cosines, sines)
    assert torch.equal(target, normalised_and_rotated(norms, cosines, sines, source))
    assert torch.equal(source, before)


@TYPES
def test_the_gradient_of_heads_that_are_normalised_and_rotated_is_autograds(dtype):
    gradients, inputs = strided(TOKENS, 3 * DIM, dtype=dtype), strided(TOKENS, 3 * DIM, dtype=dtype)
    (norms, weights), (cosines, sines) = head_norms(dtype), angles(dtype)
    turn = partial(normalised_and_rotated, [norm.float() for norm in norms], cosines.float(), sines.float())
    expected = gradient_of(turn, inputs, gradients)
    plain.norm_rotate_backward(gradients, inputs, weights, EPSILON, cosines, sines)
    assert distance(inputs, expected) <= tolerance(dtype)


@TYPES
@pytest.mark.parametrize("nested", [True, False])
def test_dequantized_values_are_bitsandbytes(nested, dtype):
    functional = import_bitsandbytes().functional
    packed, state = functional.quantize_4bit(torch.randn(48, 128).to(dtype), quant_type="nf4", compress_statistics=nested)
    weight = import_bitsandbytes().nn.Params4bit(packed, requires_grad=False, quant_state=state, bnb_quantized=True)
    outputs = strided(48, 128, dtype=dtype)
    plain.dequantize(weight, outputs)
    assert torch.equal(outputs, functional.dequantize_4bit(packed, state))


@TYPES
@pytest.mark.parametrize("rows", [4, 11])
def test_an_adapter_fills_its_place_and_what_is_beside_and_behind_it(rows, dtype):
    """Adapters stay in fp32 with a bf16 model; earlier contents are overwritten."""
    lora_a, lora_b = torch.randn(4, SIZE), torch.randn(9, 4)
    right, below = torch.full((9, 12), float("nan"), dtype=dtype), torch.full((rows, SIZE), float("nan"), dtype=dtype)
    plain.fill_adapter(lora_a, lora_b, 0.3, 5, right, below)
    assert torch.equal(right, torch.nn.functional.pad(0.3 * lora_b, (5, 3)).to(dtype))
    assert torch.equal(below, torch.nn.functional.pad(lora_a, (0, 0, 0, rows - 4)).to(dtype))


def test_a_factor_keeps_likelihoods_of_a_large_vocabulary_in_fp16s_range():
    """Without the factor, the gradients of 50,000 equally likely tokens have nine bits, and smaller ones fewer."""
    exact = torch.full((1, 50_000), 1 / 50_000).double()
    exact[0, 7] -= 1
    errors = {}
    for factor in (1, FP16_FACTOR):
        logits, losses = torch.zeros(1, 50_000, dtype=torch.float16), torch.empty(1)
        plain.cross_entropy(logits, torch.tensor([7]), losses, factor)
        errors[factor] = ((logits.double() / factor - exact)[0, 8:].norm() / exact[0, 8:].norm()).item()
    assert errors[1] > 1e-3
    assert errors[FP16_FACTOR] < 5e-4


@TYPES
def test_cross_entropy_and_its_gradient_are_torchs(dtype):
    logits, targets = 3 * strided(4, 1000, dtype=dtype), torch.tensor([0, 999, -100, 5])
    expected = cross_entropy(logits.float(), targets, reduction="none", ignore_index=-100)
    gradient = gradient_of(partial(cross_entropy, target=targets, reduction="sum"), logits, torch.tensor(1.0))
    losses = torch.empty(4)
    plain.cross_entropy(logits, targets, losses)
    assert torch.allclose(losses, expected, atol=1e-6)
    assert losses[2] == 0
    assert distance(logits, gradient) <= tolerance(dtype)
    assert logits[2].abs().max() == 0


def test_the_loss_of_a_target_whose_likelihood_is_below_fp32s_range():
    logits, losses = torch.tensor([[0.0, 500.0, 499.0]]), torch.empty(1)
    expected = cross_entropy(logits.double(), torch.tensor([0])).item()
    plain.cross_entropy(logits, torch.tensor([0]), losses)
    assert losses.item() == pytest.approx(expected)
    assert logits[0].tolist() == pytest.approx([-1, 0.731059, 0.268941], abs=1e-6)


@pytest.mark.parametrize("cached", [1, 3 * SIZE])
def test_rows_that_are_computed_a_few_at_a_time(cached, monkeypatch):
    targets, whole_losses, losses = torch.tensor([0, -100, 5, 95, 7, -100, 1]), torch.empty(TOKENS), torch.empty(TOKENS)
    logits, gate_up, gradients = strided(TOKENS, SIZE), strided(TOKENS, 2 * SIZE), strided(TOKENS, SIZE)
    whole = [one.clone() for one in (logits, gate_up, gradients)]
    plain.cross_entropy(whole[0], targets, whole_losses)
    plain.gated_backward(whole[1], "silu", whole[2])
    monkeypatch.setattr(plain, "CACHED_VALUES", cached)
    plain.cross_entropy(logits, targets, losses)
    plain.gated_backward(gate_up, "silu", gradients)
    assert torch.allclose(losses, whole_losses)
    for one, other in zip((logits, gate_up, gradients), whole, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_all_implementations_take_the_same_arguments():
    """Triton's source is parsed, not imported, because Triton may not be installed."""
    source = Path(interface.__file__).with_name("triton.py").read_text(encoding="utf-8")
    of_triton = {one.name: one.args.args for one in ast.parse(source).body if isinstance(one, ast.FunctionDef)}
    for name in NAMES:
        wanted = list(inspect.signature(getattr(interface.Kernels, name)).parameters)[1:]
        for module in (plain, counted):
            assert list(inspect.signature(getattr(module, name)).parameters) == wanted
        assert [argument.arg for argument in of_triton[name]] == wanted


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_device_has_kernels_of_its_own(device):
    assert select.kernels_for(torch.device(device)) is {"cpu": plain, "meta": counted}[device]


@pytest.fixture
def triton_of(monkeypatch):
    """Fake a GPU of a compute capability, with Triton installed, whose programs run or do not; counts how often it is tried."""
    tries = []

    def fake(capability, installed=True, run=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(select, "find_spec", lambda name: installed or None)
        monkeypatch.setattr(select, "triton_kernels_work", lambda device: tries.append(device) or run)
        return tries

    select.has_triton.cache_clear()
    yield fake
    select.has_triton.cache_clear()


@pytest.mark.parametrize(
    ("capability", "installed", "run", "expected", "tried"),
    [
        ((9, 0), True, False, True, 0),  # Triton promises it: nothing is tried
        ((8, 0), True, False, True, 0),
        ((9, 0), False, True, False, 0),
        ((7, 5), True, True, True, 1),
        ((7, 5), True, False, False, 1),
        ((7, 0), True, True, True, 1),
        ((5, 2), True, True, False, 0),
    ],
)
def test_tritons_programs_are_used_where_they_run(triton_of, capability, installed, run, expected, tried):
    gpu = torch.device("cuda", 0)
    tries = triton_of(capability, installed, run)
    assert select.has_triton(gpu) is expected
    able = select.abilities_of(gpu)
    assert (able.triton, able.flash_attention) == (expected, capability >= (8, 0))
    assert len(tries) == tried
    if not expected:
        assert select.kernels_for(gpu) is plain


def test_a_cpu_has_no_abilities_of_a_gpu_and_meta_stands_for_one_that_has_all():
    assert select.abilities_of(torch.device("cpu")) is None
    assert select.abilities_of(torch.device("meta")) == ALL_ABILITIES


def test_programs_that_fail_are_no_reason_to_end():
    """Here Triton is not installed, or there is no GPU."""
    assert select.triton_kernels_work(torch.device("cpu")) is False


@pytest.mark.parametrize("name", NAMES)
def test_on_meta_a_kernel_is_one_operation_that_moves_what_it_reads_and_writes(name):
    """One tensor per argument, with a row per token, except for weights and angles, which are small."""
    small = ("weight", "weights", "cosines", "sines", "targets")
    sizes = {"gate_up": 2 * SIZE, "losses": 1, "scales": 1}
    others = {"epsilon": EPSILON, "activation": "silu", "backward": False, "scaling": 2.0, "start": 0, "factor": 1}
    arguments = {
        one: others[one] if one in others else torch.empty(TOKENS, sizes.get(one, SIZE), device="meta")
        for one in inspect.signature(getattr(counted, name)).parameters
    }
    if name == "dequantize":
        arguments["weight"] = torch.nn.Parameter(torch.empty(TOKENS, SIZE, device="meta"))
        small = ()
    used = [value.numel() for one, value in arguments.items() if isinstance(value, torch.Tensor) and one not in small]
    again = {"add_rms_norm": SIZE, "gated_backward": 3 * SIZE, "norm_rotate_backward": SIZE, "cross_entropy": SIZE}
    counter = StepCounter(0)
    counter.ignore(value for value in arguments.values() if isinstance(value, torch.Tensor))
    with counter:
        getattr(counted, name)(**arguments)
    assert counter.kernels == 1
    assert counter.moved_bytes == 4 * (sum(used) + TOKENS * again.get(name, 0))
