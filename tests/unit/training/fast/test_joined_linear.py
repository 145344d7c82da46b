"""Joined linear layers against the layers themselves, one by one, and autograd."""

import pytest
import torch

from llmft_cli.base.libraries import import_bitsandbytes
from llmft_cli.training.fast.joined_linear import JoinedLinear, Member, Norm

from .layer_models import distance

INPUTS, TOKENS = 64, 9
OUTPUTS, RANKS, SCALINGS = (48, 32, 16), (4, 0, 8), (2.0, 0.0, 0.3)
CLOSE = 1e-6


def frozen(outputs, quantized, bias):
    linear = torch.nn.Linear(INPUTS, outputs, bias=bias)
    if quantized:
        library = import_bitsandbytes()
        packed, state = library.functional.quantize_4bit(linear.weight.detach(), quant_type="nf4")
        linear.weight = library.nn.Params4bit(packed, requires_grad=False, quant_state=state, bnb_quantized=True)
    return linear.requires_grad_(False)


def members(quantized=False, bias=True, ranks=RANKS):
    torch.manual_seed(0)
    made = []
    for outputs, rank, scaling in zip(OUTPUTS, ranks, SCALINGS, strict=True):
        adapter = (
            [torch.nn.Parameter(torch.randn(shape)) for shape in ((rank, INPUTS), (outputs, rank))] if rank else (None, None)
        )
        made.append(Member(frozen(outputs, quantized, bias), *adapter, scaling))
    return made


def dense(member):
    state = getattr(member.base.weight, "quant_state", None)
    return member.base.weight if state is None else import_bitsandbytes().functional.dequantize_4bit(member.base.weight, state)


def expected_outputs(parts, inputs):
    outputs = []
    for part in parts:
        own = torch.nn.functional.linear(inputs, dense(part), part.base.bias)
        outputs.append(own if part.lora_a is None else own + part.scaling * inputs @ part.lora_a.t() @ part.lora_b.t())
    return torch.cat(outputs, 1)


def workspace(linear):
    """Full of what another layer left there: values that spoil whatever they get into."""
    return torch.full((linear.size + 5,), float("nan"))


def computed(linear, inputs):
    wide, outputs = linear.widened(TOKENS, linear.inputs), linear.widened(TOKENS, linear.outputs)
    wide[:, : linear.inputs] = inputs
    projected = linear.product(linear.matrix(workspace(linear)), wide, outputs[:, : linear.outputs])
    return outputs[:, : linear.outputs], projected


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("quantized", "kept"), [(False, False), (False, True), (True, False), (True, True)])
def test_outputs_are_those_of_the_layers(quantized, kept, bias):
    parts = members(quantized, bias)
    linear, inputs = JoinedLinear(parts, torch.float32), torch.randn(TOKENS, INPUTS)
    linear.keep(kept)
    outputs, projected = computed(linear, inputs)
    assert distance(outputs, expected_outputs(parts, inputs)) <= CLOSE
    assert distance(projected[:, :4], inputs @ parts[0].lora_a.t()) <= CLOSE
    assert distance(projected[:, 4:12], inputs @ parts[2].lora_a.t()) <= CLOSE
    assert projected[:, 12:].abs().max() == 0


@pytest.mark.parametrize(("quantized", "kept"), [(False, True), (True, False), (True, True)])
def test_gradients_are_autograds(quantized, kept):
    parts = members(quantized)
    linear, inputs = JoinedLinear(parts, torch.float32), torch.randn(TOKENS, INPUTS, requires_grad=True)
    gradient = torch.randn(TOKENS, linear.outputs)
    expected_outputs(parts, inputs).backward(gradient)
    linear.keep(kept)
    _, projected = computed(linear, inputs.detach())
    matrix, wide = linear.matrix(workspace(linear)), linear.widened(TOKENS, linear.outputs)
    wide[:, : linear.outputs] = gradient
    linear.widen_gradients(matrix, wide)
    assert distance(linear.input_gradients(matrix, wide), inputs.grad) <= CLOSE
    found = linear.backward(*linear.apart(wide), inputs.detach(), projected)
    assert [id(weights) for weights in linear.parameters] == [
        id(weights) for part in parts for weights in (part.lora_a, part.lora_b) if weights is not None
    ]
    for own, weights in zip(found, linear.parameters, strict=True):
        assert own.shape == weights.shape
        assert distance(own, weights.grad) <= CLOSE


def test_gradients_behind_a_norm_are_autograds():
    """Of its inputs, not of its outputs, which are not kept."""
    parts = members()
    linear, inputs, weight = JoinedLinear(parts, torch.float32), 3 * torch.randn(TOKENS, INPUTS), torch.randn(INPUTS)
    scales = torch.rsqrt(inputs.square().mean(-1))
    gradient, normal = torch.randn(TOKENS, linear.outputs), torch.nn.functional.rms_norm(inputs, (INPUTS,), weight, eps=0.0)
    expected_outputs(parts, normal).backward(gradient)
    matrix, wide = linear.matrix(workspace(linear)), linear.with_room(gradient)
    linear.widen_gradients(matrix, wide)
    found = linear.backward(*linear.apart(wide), inputs, linear.project(matrix, normal), Norm(weight, scales))
    for own, weights in zip(found, linear.parameters, strict=True):
        assert distance(own, weights.grad) <= CLOSE


def test_room_that_another_layer_left_behind_gradients_is_used():
    linear, values = JoinedLinear(members(), torch.float32), torch.randn(TOKENS, INPUTS)
    matrix, wide = linear.matrix(workspace(linear)), torch.randn(TOKENS, linear.outputs + linear.ranks)
    with_room = linear.input_gradients(matrix, wide, room=linear.ranks)
    assert torch.equal(with_room, linear.input_gradients(matrix, wide))
    widened = linear.with_room(with_room)
    assert widened.shape == (TOKENS, INPUTS + linear.ranks)
    assert widened.data_ptr() == with_room.data_ptr()
    beside_others = torch.randn(TOKENS, INPUTS + 2 * linear.ranks)[:, :INPUTS]
    for rows in (values, beside_others, torch.randn(TOKENS + 1, INPUTS + linear.ranks)[1:, :INPUTS], with_room.bfloat16()):
        copy = linear.with_room(rows)
        assert copy.shape == widened.shape
        assert torch.equal(copy[:, :INPUTS], rows.float())
        copy.zero_()
        assert rows.abs().sum() > 0


def test_gradients_have_the_type_of_their_adapters():
    """Adapters are fp32 beside a model in bf16."""
    linear = JoinedLinear(members(bias=False), torch.bfloat16)
    matrix, inputs = linear.matrix(workspace(linear).bfloat16()), torch.randn(TOKENS, INPUTS).bfloat16()
    assert matrix.dtype == torch.bfloat16
    wide = torch.randn(TOKENS, linear.outputs + linear.ranks).bfloat16()
    found = linear.backward(*linear.apart(wide), inputs, linear.project(matrix, inputs))
    assert {gradient.dtype for gradient in found} == {torch.float32}


def test_without_adapters_there_is_nothing_but_the_bases():
    parts = members(ranks=(0, 0, 0))
    linear, inputs = JoinedLinear(parts, torch.float32), torch.randn(TOKENS, INPUTS)
    outputs, projected = computed(linear, inputs)
    assert distance(outputs, expected_outputs(parts, inputs)) <= CLOSE
    assert projected is None
    assert linear.size == sum(OUTPUTS) * INPUTS
    assert linear.parameters == []
    assert linear.backward(outputs, outputs[:, :0], inputs, None) == []


@pytest.mark.parametrize(("ranks", "in_16_bits", "in_fp32"), [((1, 0, 0), 64, 16), ((4, 0, 8), 64, 16), ((64, 1, 0), 128, 80)])
def test_rows_of_the_matrix_are_aligned(ranks, in_16_bits, in_fp32):
    """To 128 bytes in 16 bits and to 64 in fp32, which is 64 and 16 values."""
    for dtype, columns in ((torch.bfloat16, in_16_bits), (torch.float16, in_16_bits), (torch.float32, in_fp32)):
        linear = JoinedLinear(members(ranks=ranks), dtype)
        assert linear.ranks == columns
        assert linear.matrix(workspace(linear)).shape == (sum(OUTPUTS) + columns, INPUTS + columns)


def test_dense_weights_are_in_the_matrix_afterwards():
    parts = members()
    before = [part.base.weight.clone() for part in parts]
    linear = JoinedLinear(parts, torch.float32)
    linear.take_over_dense_weights()
    places = [part.base.weight.untyped_storage().data_ptr() for part in parts]
    assert set(places) == {linear.kept.untyped_storage().data_ptr()}
    assert all(torch.equal(part.base.weight, values) for part, values in zip(parts, before, strict=True))
    assert linear.matrix(torch.empty(0)) is linear.kept


def test_quantized_weights_stay_what_they_are():
    parts = members(quantized=True)
    linear = JoinedLinear(parts, torch.float32)
    linear.take_over_dense_weights()
    assert linear.kept is None
    assert all(part.base.weight.quant_state is not None for part in parts)
    linear.keep(True)
    assert torch.equal(linear.kept[: OUTPUTS[0], :INPUTS], dense(parts[0]))
    linear.keep(False)
    assert linear.kept is None


def test_some_layers_may_be_quantized_and_others_not():
    """transformers leaves modules out that it is told to."""
    parts = members(quantized=True)
    parts[1] = Member(frozen(OUTPUTS[1], False, True), None, None, 0.0)
    linear, inputs = JoinedLinear(parts, torch.float32), torch.randn(TOKENS, INPUTS)
    assert linear.is_quantized
    assert distance(computed(linear, inputs)[0], expected_outputs(parts, inputs)) <= CLOSE


def test_gradients_hold_no_more_memory_than_they_have_values():
    """Those of lora_A are views of one product, and held a third more, its padding, for as long as there were gradients."""
    linear = JoinedLinear(members(quantized=True), torch.float32)
    inputs = torch.randn(TOKENS, INPUTS)
    outputs, projected = computed(linear, inputs)
    wide = linear.widened(TOKENS, linear.outputs)
    wide[:, : linear.outputs] = outputs
    matrix = linear.matrix(workspace(linear))
    linear.widen_gradients(matrix, wide)
    gradients = linear.backward(*linear.apart(wide), inputs, projected)
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in gradients}
    assert sum(storages.values()) == sum(weights.numel() * 4 for weights in linear.parameters)
