"""A simulated training step against graphs computed by hand, and against what torch itself keeps, computes and frees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import bitsandbytes
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from llmft_cli.models import random_model
from llmft_cli.settings.compute_types import Abilities
from llmft_cli.settings.config import resolve
from llmft_cli.training.attention.varlen import takes_enable_gqa
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.fast.architectures import blocks_of
from llmft_cli.training.planning import simulation
from llmft_cli.training.planning.simulation import BatchShape, StepCounter, full_batch, simulate, standing_tensors
from llmft_cli.training.profiling.measuring import random_batch
from llmft_cli.training.step.checkpointing import checkpoint_layers
from llmft_cli.training.step.loss import summed_loss
from llmft_cli.training.step.tuned_model import make_trainable, why_plain_layers

from ..meta_models import META, on_meta, small_shape

VOCABULARY = 640
CPU = torch.device("cpu")


def values(count: int, **options: Any) -> torch.Tensor:
    return torch.empty(count, device="meta", **options)


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    start = values(256)
    counter = StepCounter(VOCABULARY)
    counter.ignore([start])
    with counter:
        doubled = start * 2
        more = doubled + 1
        del doubled
        more = more - 1  # the old one is freed when the new one is there
    assert counter.peak_bytes == 2 * 1024
    assert counter.alive.total() == 1024
    assert counter.kernels == 3
    # Each reads 1,024 bytes and writes as many.
    assert counter.moved_bytes == 3 * 2 * 1024
    del more
    assert counter.alive.total() == 0
    assert counter.at_peak["activations"] == 2 * 1024


def test_what_is_only_written_is_moved_once() -> None:
    """It was once counted as read, too, and memory that was only allocated as moved: 6% of a step's roofline."""
    start = values(256)
    counter = StepCounter(VOCABULARY)
    counter.ignore([start])
    with counter:
        target = torch.empty_like(start)
        assert (counter.kernels, counter.moved_bytes) == (0, 0)
        target.copy_(start)
        torch.mul(start, 2, out=target)
        assert (counter.kernels, counter.moved_bytes) == (2, 2 * 2 * 1024)
        target.zero_()
        assert counter.moved_bytes == (2 * 2 + 1) * 1024
        target.add_(start)  # reads both
    assert (counter.kernels, counter.moved_bytes) == (4, (2 * 2 + 1 + 3) * 1024)


def test_views_and_changes_in_place_take_nothing() -> None:
    start = values(1024)
    counter = StepCounter(VOCABULARY)
    with counter:
        copied = start.clone()
        shown = copied.view(32, 32).t()[:5]
        copied.mul_(2)
        assert counter.alive.total() == 4096
        del copied
        assert counter.alive.total() == 4096  # the view keeps it
    assert counter.kernels == 2
    del shown
    assert counter.alive.total() == 0


@pytest.mark.parametrize(("count", "size"), [(1, 512), (128, 512), (129, 1024), (0, 0)])
def test_sizes_are_rounded_as_torch_gives_out_memory(count: int, size: int) -> None:
    with StepCounter(VOCABULARY) as counter:
        made = values(count)
    assert counter.alive.total() == size
    assert made.numel() == count


def test_the_peak_of_a_backward_pass_by_hand() -> None:
    """The sum of relu(x W^T), with 64 rows, 32 inputs and 128 outputs in fp32: a product of 32 KiB.

    The forward pass keeps relu's output for the backward pass, and the sum. That starts with a scalar of
    one, and the gradient before relu stands beside relu's output; then this output is gone, and there is
    room for the gradient of the weights, 16 KiB, before it is added to the one that is there.
    """
    inputs, weights = values(64 * 32).view(64, 32), values(128 * 32).view(128, 32).requires_grad_()
    weights.grad = torch.empty_like(weights)
    counter = StepCounter(VOCABULARY)
    counter.ignore([inputs, weights, weights.grad])
    product, scalar = 64 * 128 * 4, 512
    with counter:
        loss = torch.relu(inputs @ weights.t()).sum()
        assert counter.alive.total() == product + scalar
        assert counter.peak_bytes == 2 * product
        loss.backward()
    assert counter.peak_bytes == 2 * product + 2 * scalar
    assert counter.alive.total() == scalar
    assert counter.product_flops == 2 * (2 * 64 * 32 * 128)


def test_what_a_peak_consists_of() -> None:
    """Tensors as wide as the vocabulary are logits, what bitsandbytes makes is workspace."""
    weight = bitsandbytes.functional.quantize_4bit(torch.empty(64, 64, device="meta"), quant_type="nf4")
    counter = StepCounter(VOCABULARY)
    with counter:
        hidden = torch.empty(3, 64, device="meta")
        logits = torch.empty(3, VOCABULARY, device="meta")
        dense = bitsandbytes.functional.dequantize_4bit(*weight)
    assert counter.at_peak == {"activations": 1024, "logits": 3 * VOCABULARY * 4, "workspace": 64 * 64 * 4}
    assert (len(hidden), len(logits), len(dense)) == (3, 3, 64)


def attend(heads: int, key_value_heads: int, rows: int, length: int) -> StepCounter:
    def states(count: int) -> torch.Tensor:
        return torch.empty(rows * length, count, 32, device="meta", dtype=torch.bfloat16, requires_grad=True)

    query, key, value = states(heads), states(key_value_heads), states(key_value_heads)
    starts = torch.empty(rows + 1, dtype=torch.int32, device="meta")
    options: dict[str, Any] = {"enable_gqa": True} if takes_enable_gqa(varlen_attn) else {}
    with StepCounter(VOCABULARY) as counter:
        out: Any = varlen_attn(query, key, value, starts, starts, length, length, window_size=(-1, 0), **options)
        out.sum().backward()
    return counter


def test_attention_is_half_of_a_square_for_every_row() -> None:
    """Two products forward and five backward, of which the causal mask leaves half: 2 x length^2 x dimension / 2 each."""
    rows, length, heads, dim = 3, 128, 4, 32
    product = rows * heads * length**2 * dim
    assert attend(heads, heads, rows, length).attention_flops == 7 * product
    assert attend(heads, 2, rows, length).attention_flops == 7 * product  # shared keys are computed with as often
    assert attend(heads, heads, 6 * rows, length // 6).attention_flops < 7 * product / 5


def test_the_backward_pass_of_attention_takes_memory_for_itself() -> None:
    """FlashAttention-2 sums the gradient of the queries in fp32, in blocks of 128 tokens, with one more number a token."""
    rows, length, heads, dim = 3, 128, 4, 32
    tokens = rows * length
    sums = (tokens + 128 * rows) * heads * (dim + 1) * 4
    assert attend(heads, heads, rows, length).at_peak["workspace"] == sums
    repeated = 2 * tokens * heads * dim * 2  # the gradients of keys and values, one for each head of the query
    assert attend(heads, 2, rows, length).at_peak["workspace"] == sums + repeated


def test_nothing_is_left_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    followers = []

    class Kept(StepCounter):
        def __init__(self, vocabulary: int) -> None:
            super().__init__(vocabulary)
            followers.append(self)

    monkeypatch.setattr(simulation, "StepCounter", Kept)
    model = on_meta(small_shape())
    for checkpointed in (0, 1, None):
        checkpoint_layers(model, checkpointed)
        step = simulate(model, full_batch(2, 64))
        assert followers[-1].alive.total() == 0
        assert step.peak_bytes == step.activation_bytes + step.logits_bytes + step.workspace_bytes > 0


def test_a_step_is_the_same_every_time() -> None:
    model = on_meta(small_shape())
    first = simulate(model, full_batch(2, 64))
    assert simulate(model, full_batch(2, 64)) == first
    assert simulate(model, full_batch(4, 64)).peak_bytes > first.peak_bytes


# Products of a layer of `small_shape` and its adapters, forward; columns for these are padded from 16 to 64. Inputs go through
# A, and beside what that gives through the weights and B: query and output, key and value, gate and up, and down.
PLAIN_LAYER = 128 * (6 * 64) + 256 * 64 + 2 * (128 + 64 + 256) * (128 + 64) + 128 * (256 + 64)
# A fast one's: columns for adapters are padded from 48, 16 and 32 to 64, and of the last product only its adapter's part.
FAST_LAYER = (128 * 64 + 192 * 256) + (128 * 64 + 192 * 128) + (128 * 64 + 192 * 512) + 256 * 64


@pytest.mark.slow
@pytest.mark.parametrize(("fast", "recomputed"), [(False, PLAIN_LAYER), (True, FAST_LAYER)])
def test_checkpointing_trades_computation_for_memory(fast: bool, recomputed: int) -> None:
    """Each checkpointed layer is computed once more and keeps only its input; the last layer's peak always remains."""
    shape, batch = small_shape(4), full_batch(2, 256)
    steps = [simulate(on_meta(shape, checkpointed, fast=fast), batch) for checkpointed in range(5)]
    peaks = [step.peak_bytes for step in steps]
    assert peaks[:4] == sorted(peaks[:4], reverse=True)
    assert peaks[3] < 0.6 * peaks[0]
    more = {second.product_flops - first.product_flops for first, second in pairwise(steps)}
    assert more == {2 * batch.tokens * recomputed}


def counted_products(model: Any, batch: BatchShape) -> int:
    """As torch's own counter counts them; it has to be told of the product that adds in place."""

    def added_product(_result: Any, left: tuple[int, int], right: tuple[int, int], **_: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product}) as counter:
        simulate(model, batch)
    return sum(count for name, count in counter.get_flop_counts()["Global"].items() if "mm" in str(name))


@pytest.mark.parametrize("checkpointed", [0, None])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("fast", [True, False])
def test_products_are_those_that_torch_counts(checkpointed: int | None, quantization: str, fast: bool) -> None:
    model = on_meta(small_shape(), checkpointed, quantization, lora_r=8, fast=fast)
    batch = BatchShape(2, 64, 40, 6, 32)
    assert simulate(model, batch).product_flops == counted_products(model, batch)


def unique_bytes(tensors: Iterable[torch.Tensor]) -> int:
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(-(-size // 512) * 512 for size in sizes.values())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"lora_dropout": 0.1},
        {"target_modules": "q_proj,v_proj"},
        {"fast": False},
        {"target_modules": "q_proj", "fast": False},
    ],
)
def test_what_is_alive_after_a_forward_pass_is_what_autograd_keeps(quantization: str, flags: dict[str, Any]) -> None:
    """A real model on the CPU: the storages that autograd saves for the backward pass, and the loss."""
    base = random_model.build(small_shape(), CPU, quantization, torch.bfloat16)
    model = make_trainable(base, resolve(flags), "a model")
    model.train()
    batch = random_batch(BatchShape(2, 48, 60, 6, 16), VOCABULARY, CPU)
    standing = [*standing_tensors(model), *(value for value in batch.values() if isinstance(value, torch.Tensor))]
    counter = StepCounter(VOCABULARY)
    counter.ignore(standing)
    with counter:
        loss = summed_loss(model, batch)
    alive = counter.alive.total()
    del loss
    assert counter.alive.total() == 0

    known = {tensor.untyped_storage()._cdata for tensor in standing}
    loss = summed_loss(model, batch)
    assert alive == unique_bytes(
        tensor for tensor in (*saved_behind(loss), loss) if tensor.untyped_storage()._cdata not in known
    )


def saved_behind(result: torch.Tensor) -> list[torch.Tensor]:
    """Tensors that the graph behind the result holds for its backward pass."""
    seen, todo, found = set(), [result.grad_fn], []
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo.extend(following for following, _ in node.next_functions)
        kept = getattr(node, "kept", None)  # of a fast layer, whose attention has a graph of its own
        if kept is not None:
            attention, mlp = kept
            held = tree_leaves((vars(attention), vars(mlp), vars(node.angles), node.options))
            found.extend(tensor for tensor in held if isinstance(tensor, torch.Tensor))
            todo.append(attention.attended.grad_fn)
        for name in dir(node):
            if name == "saved_tensors" or name.startswith("_saved_"):
                found.extend(tensor for tensor in tree_leaves(getattr(node, name)) if isinstance(tensor, torch.Tensor))
    return found


def test_a_layer_of_lora_keeps_its_input_and_the_product_of_the_rank() -> None:
    """By hand, on the device without memory: 96 tokens of 128 values in bf16, and of 16 values padded to 64."""
    model = on_meta(small_shape(), lora_r=16, fast=False)
    layer = model.base_model.model.model.layers[0].mlp.gate_proj
    inputs = torch.empty(2, 48, 128, device=META, dtype=torch.bfloat16, requires_grad=True)
    counter = StepCounter(VOCABULARY)
    counter.ignore([*standing_tensors(model), inputs])
    with counter:
        result = layer(inputs)
        assert counter.alive.total() == 96 * 256 * 2 + 96 * 64 * 2
    assert result.shape == (2, 48, 256)
    # At the peak beside these the base weight is there in bf16 with the adapter around it, and a copy of the inputs.
    assert counter.peak_bytes == 96 * (256 + 64) * 2 + (256 + 64) * (128 + 64) * 2 + 96 * (128 + 64) * 2


def test_following_on_the_cpu_does_not_change_what_is_computed() -> None:
    base = random_model.build(small_shape(), CPU, "nf4", torch.bfloat16)
    model = make_trainable(base, resolve({}), "a model")
    checkpoint_layers(model, None)
    model.train()
    batch = random_batch(full_batch(1, 32), VOCABULARY, CPU) | {"longest_row": 32}
    expected = summed_loss(model, batch)
    with StepCounter(VOCABULARY):
        assert summed_loss(model, batch) == expected


@pytest.mark.parametrize("fast", [True, False])
def test_a_step_in_fp16_is_one_in_bf16(fast: bool) -> None:
    """In what it holds, moves and launches; what is scaled up in the output layer is nothing more."""
    found = [simulate(in_type(dtype, fast), full_batch(2, 64)) for dtype in (torch.bfloat16, torch.float16)]
    # Plain layers have a scalar of their own for each chunk of logits.
    assert abs(found[0].peak_bytes - found[1].peak_bytes) <= 512
    assert found[0].product_flops == found[1].product_flops
    if fast:
        assert found[1] == replace(found[0], kernels=found[0].kernels + 1, moved_bytes=found[0].moved_bytes + 8)


def in_type(dtype: torch.dtype, fast: bool = True, able: Abilities | None = None, **flags: Any) -> Any:
    base = random_model.build(small_shape(), META, "nf4", dtype)
    return make_trainable(base, resolve({"fast": fast, **flags}), "a model", able)


def test_fp32_holds_twice_as_much_and_attends_by_a_mask() -> None:
    """With a rank that needs no padding, which is more in 16 bits."""
    types = (torch.bfloat16, torch.float32)
    half, whole = (simulate(in_type(dtype, lora_r=64), full_batch(2, 512)) for dtype in types)
    mask = 2 * 512 * 512 * 4
    assert whole.activation_bytes == pytest.approx(2 * half.activation_bytes + mask, rel=0.1)
    assert whole.product_flops == pytest.approx(half.product_flops, rel=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_a_gpu_without_flash_attention_holds_one_mask_and_no_scores(fast: bool) -> None:
    older = Abilities(bf16=False, flash_attention=False, triton=True)
    models = [in_type(torch.float16, fast, able) for able in (None, older)]
    rows, masked = (simulate(model, full_batch(1, 2048)) for model in models)
    mask, scores = 2048 * 2048 * 2, 4 * 2048 * 2048 * 2
    added = masked.peak_bytes - rows.peak_bytes
    assert mask <= added < scores
    # All of the square instead of the half below its diagonal.
    assert masked.attention_flops == 2 * rows.attention_flops


class Types(TorchDispatchMode):
    """Records the types of all tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.seen |= {item.dtype for item in tree_leaves((args, kwargs, result)) if isinstance(item, torch.Tensor)}
        return result


@pytest.mark.parametrize("triton", [True, False])
def test_nothing_is_in_bf16_on_a_gpu_that_has_none(triton: bool) -> None:
    model = in_type(torch.float16, able=Abilities(bf16=False, flash_attention=False, triton=triton)).train()
    with Types() as found:
        (summed_loss(model, full_batch(1, 64).on_meta()) / 64).backward()
    assert torch.float16 in found.seen
    assert torch.bfloat16 not in found.seen


def test_a_gpu_without_triton_has_plain_layers() -> None:
    able = Abilities(bf16=False, flash_attention=False, triton=False)
    model = in_type(torch.float16, able=able)
    assert not blocks_of(model)
    assert why_plain_layers(model, resolve({}), able) == "no Triton"


def test_the_batch_on_meta_is_as_training_makes_it() -> None:
    """The same shapes and types as from `collate`."""
    row = {"input_ids": [5] * 24, "labels": [-100] * 4 + [5] * 8 + [-100] * 4 + [5] * 8, "row_lengths": [12, 12]}
    real = collate([row, row])
    made = BatchShape(2, 24, 32, 4, 12).on_meta()
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            assert (name, value.shape, value.dtype) == (name, real[name].shape, real[name].dtype)
        else:
            assert real[name] == value


def test_the_fullest_batch() -> None:
    batch = full_batch(3, 100)
    assert (batch.tokens, batch.supervised, batch.rows, batch.longest_row) == (300, 297, 3, 100)


def test_following_a_step_leaves_bitsandbytes_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table of 8-bit values stays on the first device that it quantises on: `meta` would make it useless for good."""
    monkeypatch.setattr(bitsandbytes.functional, "name2qmap", {})
    simulate(on_meta(small_shape()), full_batch(1, 32))
    assert {table.device.type for table in bitsandbytes.functional.name2qmap.values()} == {"cpu"}
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    again = bitsandbytes.functional.dequantize_4bit(packed, state)
    assert (again - weight).norm() < 0.1 * weight.norm()


def test_a_model_whose_attention_knows_no_row_boundaries_is_followed_with_its_mask() -> None:
    """Gemma 2 caps its scores, which neither sdpa nor `varlen_attn` does: its attention holds scores of length squared."""
    from transformers import Gemma2Config

    shape = Gemma2Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64,
    )  # fmt: skip
    shape._attn_implementation = "eager"  # the default of transformers 5.23, not of 5.17
    base = random_model.build(shape, torch.device("meta"), "nf4", torch.bfloat16)
    model = make_trainable(base, resolve({}), "gemma")
    checkpoint_layers(model, None)
    short, long = (simulate(model, full_batch(1, length)) for length in (512, 2048))
    scores = 2 * 2048**2 * torch.float32.itemsize  # of both heads, in the softmax
    assert long.peak_bytes > max(scores, 6 * short.peak_bytes)
