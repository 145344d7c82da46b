"""On an NVIDIA GPU: kernels, attention and recorded passes of fast layers. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

from functools import partial
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import LlamaConfig

from llmft_cli.models import random_model
from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.settings.config import resolve
from llmft_cli.training.attention import varlen
from llmft_cli.training.fast import architectures, cuda_graphs
from llmft_cli.training.fast.cuda_graphs import recorded_passes
from llmft_cli.training.fast.kernels import plain
from llmft_cli.training.planning.simulation import BatchShape, full_batch
from llmft_cli.training.profiling.measuring import random_batch
from llmft_cli.training.step.checkpointing import checkpoint_layers
from llmft_cli.training.step.loss import loss_and_gradients
from llmft_cli.training.step.tuned_model import make_trainable

pytestmark = pytest.mark.gpu

CARD = torch.device("cuda", 0)
VOCABULARY = 32_000


def wide(rows: int, columns: int) -> torch.Tensor:
    """Random values in rows with padding between them."""
    return torch.randn(rows, columns + 64, device=CARD, dtype=torch.bfloat16)[:, :columns]


def adapter(rank: int, inputs: int, outputs: int) -> list[torch.Tensor]:
    return [torch.randn(rank, inputs, device=CARD), torch.randn(outputs, rank, device=CARD)]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


def kernel_cases() -> list[tuple[str, list[Any]]]:
    """A kernel and its arguments."""
    torch.manual_seed(0)
    weight = torch.randn(576, device=CARD, dtype=torch.bfloat16)
    angles = torch.randn(300, 32, device=CARD).repeat(1, 2)
    turned = [angles.cos().bfloat16(), angles.sin().bfloat16()]
    scales = torch.rand(300, device=CARD)
    heads = torch.randn(9, 64, device=CARD, dtype=torch.bfloat16)
    gated = [
        (name, [wide(300, 2200), activation, wide(300, 1100)])
        for name in ("gated", "gated_backward")
        for activation in ("silu", "gelu_tanh")
    ]
    return [
        ("rms_norm", [wide(300, 576), weight, 1e-5, wide(300, 576), scales]),
        ("rms_norm", [wide(300, 576), weight.float(), 1e-5, wide(300, 576), scales]),
        ("add_rms_norm", [wide(300, 576), wide(300, 576), weight, 1e-5, wide(300, 576), scales]),
        ("rms_norm_backward", [wide(300, 576), wide(300, 576), weight, scales, wide(300, 576), wide(300, 576)]),
        *gated,
        ("rotate", [wide(300, 576), wide(300, 576), *turned, False]),
        ("rotate", [wide(300, 576), wide(300, 576), *turned, True]),
        ("norm_rotate", [wide(300, 576), wide(300, 576), heads, 1e-5, *turned]),
        ("norm_rotate_backward", [wide(300, 576), wide(300, 576), heads, 1e-5, *turned]),
        ("norm_rotate", [wide(300, 576), wide(300, 576), heads.float(), 1e-5, *turned]),
        ("norm_rotate_backward", [wide(300, 576), wide(300, 576), heads.float(), 1e-5, *turned]),
        ("fill_adapter", [*adapter(16, 576, 1100), 0.3, 0, wide(1100, 64), wide(16, 576)]),
        ("fill_adapter", [*adapter(8, 4000, 300), 2.0, 45, wide(300, 96), wide(51, 4000)]),
        ("cross_entropy", [3 * wide(100, VOCABULARY), torch.arange(-1, 99, device=CARD), torch.zeros(100, device=CARD)]),
    ]


def test_kernels_compute_what_torch_does() -> None:
    """Compare everything that they write, and check that their inputs are unchanged; bf16 has eight bits."""
    from llmft_cli.training.fast.kernels import triton

    for name, arguments in kernel_cases():
        copies = [[item.clone() if isinstance(item, torch.Tensor) else item for item in arguments] for _ in range(2)]
        getattr(triton, name)(*copies[0])
        getattr(plain, name)(*copies[1])
        for ours, theirs in zip(*copies, strict=True):
            if isinstance(ours, torch.Tensor):
                assert distance(ours, theirs) < 5e-3, name


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_weights_are_dequantised_to_the_bit(kind: str, nested: bool) -> None:
    from llmft_cli.training.fast.kernels import triton

    weights = torch.randn(192, 576, device=CARD, dtype=torch.bfloat16)
    packed, state = bitsandbytes.functional.quantize_4bit(weights, quant_type=kind, compress_statistics=nested)
    parameter = bitsandbytes.nn.Params4bit(packed, requires_grad=False, quant_state=state, bnb_quantized=True)
    outputs = wide(192, 576)
    triton.dequantize(parameter, outputs)
    assert torch.equal(outputs, bitsandbytes.functional.dequantize_4bit(parameter, state))


@pytest.mark.parametrize("key_heads", [8, 2])
def test_dense_attention_is_that_of_rows_as_long_as_their_sequences(key_heads: int) -> None:
    """Outputs and gradients, also for shared key-value heads."""
    torch.manual_seed(0)
    starts = torch.tensor([0, 256, 512], device=CARD, dtype=torch.int32)
    parts = [torch.randn(2, heads, 256, 64, device=CARD, dtype=torch.bfloat16) for heads in (8, key_heads, key_heads)]
    gradient = torch.randn(2, 256, 8, 64, device=CARD, dtype=torch.bfloat16)
    results = []
    for alone in (False, True):
        own = [part.clone().requires_grad_() for part in parts]
        output, _ = varlen.varlen_attention(
            torch.nn.Module(), *own, None, cu_seq_lens_q=starts, max_length_q=256, first_rows_alone=alone, scaling=0.125
        )
        results.append([output, *torch.autograd.grad(output, own, gradient)])
    for dense, by_rows in zip(results[1], results[0], strict=True):
        assert distance(dense, by_rows) < 1e-2


def small_model(layers: int, checkpointed: int | None, activation_offloading: bool = False) -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=layers, num_attention_heads=8
    )
    base = random_model.build(shape, CARD, "nf4", torch.bfloat16)
    model = make_trainable(base, resolve({}), "random").train()
    architectures.offload_activations(model, activation_offloading)
    checkpoint_layers(model, checkpointed)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(std=0.02)
    return model


@pytest.mark.parametrize("checkpointed", [None, 4])
def test_what_is_offloaded_comes_back_as_it_was(checkpointed: int | None) -> None:
    """In passes of several sizes one after the other, with only some on the GPU at a time."""
    results = []
    for offloaded in (False, False, True):
        model = small_model(8, checkpointed, offloaded)
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        seen = []
        for sequences, length in ((2, 512), (4, 1024), (1, 256), (4, 1024)):
            batch = random_batch(full_batch(sequences, length), VOCABULARY, CARD)
            loss = loss_and_gradients(model, batch, torch.tensor(100.0, device=CARD))
            seen.append([loss, *(weights.grad.clone() for weights in trained)])
        results.append(seen)
    kept, again, fetched = ([tensor for seen in result for tensor in seen] for result in results)
    # Attention adds up in another order now and then: as far as that went for any gradient of any pass, and half as much
    # more, or an eighth of what bf16 rounds, where it did not happen. Another layer's input would be 1 away.
    noise = max(distance(other, one) for one, other in zip(kept, again, strict=True))
    assert max(distance(other, one) for one, other in zip(kept, fetched, strict=True)) <= max(1.5 * noise, 5e-4)


@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize("checkpointed", [0, None])
def test_a_recorded_pass_has_the_loss_and_gradients_of_the_pass(checkpointed: int | None, offloaded: bool) -> None:
    """For batches of four shapes and one of them again, each added to the existing gradients."""
    model = small_model(3, checkpointed, offloaded)
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    work = partial(loss_and_gradients, model)
    passes = recorded_passes(model, CARD, work)
    assert passes is not None
    for sequences, length, supervised, rows in ((2, 512, 1023, 2), (2, 512, 1023, 4), (2, 512, 400, 8), (1, 768, 700, 3)) * 2:
        batch = random_batch(BatchShape(sequences, length, supervised, rows, sequences * length // rows), VOCABULARY, CARD)
        divisor = torch.tensor(float(supervised), device=CARD)
        model.zero_grad()
        expected = work(batch, divisor)
        gradients = [weights.grad for weights in trained]
        model.zero_grad()
        for times in (1, 2):
            assert passes.run(batch, divisor).item() == pytest.approx(expected.item(), rel=1e-5)
            for weights, gradient in zip(trained, gradients, strict=True):
                assert distance(weights.grad, times * gradient) < 0.02
    assert passes.failure is None


@pytest.mark.parametrize("offloaded", [False, True])
def test_a_recording_that_breaks_off_leaves_everything_as_it_was(offloaded: bool) -> None:
    """The pass goes on without it, and another model's passes are recorded.

    Random numbers can be drawn on the card, cached memory is given back, and the current stream is the one from before: once
    torch went on as if the capture did.
    """
    stream = torch.cuda.current_stream()
    model = small_model(3, None, offloaded)
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    batch = random_batch(full_batch(2, 512), VOCABULARY, CARD)
    divisor = torch.tensor(100.0, device=CARD)
    expected = loss_and_gradients(model, batch, divisor)
    gradients = [weights.grad for weights in trained]
    model.zero_grad()
    layer = decoder_layers(model)[1]
    forward = layer.forward

    def out_of_memory_while_recording(*arguments: Any, **options: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("CUDA out of memory, as it were")
        return forward(*arguments, **options)

    layer.forward = out_of_memory_while_recording
    passes = recorded_passes(model, CARD, partial(loss_and_gradients, model))
    assert passes is not None
    for times in (1, 2, 3):
        assert passes.run(batch, divisor).item() == pytest.approx(expected.item(), rel=1e-5)
        for weights, gradient in zip(trained, gradients, strict=True):
            assert distance(weights.grad, times * gradient) < 0.02
    assert passes.failure == "CUDA out of memory, as it were"
    assert torch.cuda.current_stream() == stream
    torch.empty(2**30, dtype=torch.uint8, device=CARD)
    held = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= held - 2**30
    assert 0 <= torch.rand(1, device=CARD).item() < 1
    other = small_model(2, 0)
    others = recorded_passes(other, CARD, partial(loss_and_gradients, other))
    assert others is not None
    for _ in range(2):
        others.run(batch, divisor)
    assert others.failure is None


def test_of_more_shapes_than_are_kept_the_oldest_recordings_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six shapes in turn with at most four recordings, two of them used often; losses stay the same."""
    monkeypatch.setattr(cuda_graphs, "MOST_RECORDINGS", 4)
    model = small_model(3, 0)
    work = partial(loss_and_gradients, model)
    passes = recorded_passes(model, CARD, work)
    assert passes is not None
    divisor = torch.tensor(100.0, device=CARD)
    for length in (128, 256, 128, 256, 384, 128, 256, 512, 128, 256, 640, 128, 256, 768, 128, 256, 384, 512):
        batch = random_batch(full_batch(2, length), VOCABULARY, CARD)
        assert passes.run(batch, divisor).item() == pytest.approx(work(batch, divisor).item(), rel=1e-4)
    assert passes.failure is None
    assert len(passes._recordings) == 4


def test_heads_of_a_size_that_flash_attention_does_not_take() -> None:
    """OpenLLaMA 3B's heads have 100 values; packed rows failed with the kernel's own error."""
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=1600, intermediate_size=1408, num_hidden_layers=2, num_attention_heads=16
    )
    losses = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = make_trainable(
            random_model.build(shape, CARD, "nf4", torch.bfloat16), resolve({"fast": fast}), "random"
        ).train()
        torch.manual_seed(1)
        batch = random_batch(BatchShape(2, 512, 1000, 8, 128), VOCABULARY, CARD)
        losses.append(loss_and_gradients(model, batch, torch.tensor(1000.0, device=CARD)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
