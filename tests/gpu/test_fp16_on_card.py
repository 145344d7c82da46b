"""On an NVIDIA GPU: training in fp16, also on a GPU that is made to look older. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from llmft_cli.base.errors import Interrupted
from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.models import random_model
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config, resolve
from llmft_cli.training.attention import masked
from llmft_cli.training.fast.architectures import blocks_of
from llmft_cli.training.fast.cuda_graphs import recorded_passes
from llmft_cli.training.fast.kernels import plain, select
from llmft_cli.training.fast.output_loss import FP16_FACTOR
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.planning.decide import longest_batches, predicted_options
from llmft_cli.training.planning.options import choose
from llmft_cli.training.planning.simulation import BatchShape, full_batch
from llmft_cli.training.profiling.measuring import measure, random_batch
from llmft_cli.training.step.loss import loss_and_gradients
from llmft_cli.training.step.tuned_model import apply_plan, make_trainable
from llmft_cli.training.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("segments_that_grow")]

CARD = torch.device("cuda", 0)
VOCABULARY, TOKENS = 32_000, 2048
SCALE = 2.0**16
ROWS = BatchShape(2, 512, 1000, 8, 128)
WORDS = ["red", "green", "blue", "white", "black", "amber", "violet"]


@pytest.fixture(autouse=True)
def card_to_itself() -> Iterator[None]:
    give_back()
    yield
    give_back()


def give_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch reports the GPU as a T4; Triton still compiles for the real GPU."""
    select.has_triton.cache_clear()
    monkeypatch.setattr(compute_types, "capability_of", lambda device: (7, 5))
    yield
    select.has_triton.cache_clear()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def wide(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns + 64, device=CARD, dtype=torch.float16)[:, :columns]


def kernel_cases() -> list[tuple[str, list[Any]]]:
    torch.manual_seed(0)
    weight = torch.randn(576, device=CARD, dtype=torch.float16)
    angles = torch.randn(300, 32, device=CARD).repeat(1, 2)
    turned = [angles.cos().half(), angles.sin().half()]
    scales = torch.rand(300, device=CARD)
    heads = torch.randn(9, 64, device=CARD, dtype=torch.float16)
    targets = torch.arange(-1, 99, device=CARD)
    return [
        ("rms_norm", [wide(300, 576), weight, 1e-5, wide(300, 576), scales]),
        ("add_rms_norm", [wide(300, 576), wide(300, 576), weight.float(), 1e-5, wide(300, 576), scales]),
        ("rms_norm_backward", [wide(300, 576), wide(300, 576), weight, scales, wide(300, 576), wide(300, 576)]),
        ("gated", [wide(300, 2200), "silu", wide(300, 1100)]),
        ("gated_backward", [wide(300, 2200), "gelu_tanh", wide(300, 1100)]),
        ("rotate", [wide(300, 576), wide(300, 576), *turned, True]),
        ("norm_rotate", [wide(300, 576), wide(300, 576), heads, 1e-5, *turned]),
        ("norm_rotate_backward", [wide(300, 576), wide(300, 576), heads, 1e-5, *turned]),
        ("cross_entropy", [3 * wide(100, VOCABULARY), targets, torch.zeros(100, device=CARD), 1]),
        ("cross_entropy", [3 * wide(100, VOCABULARY), targets, torch.zeros(100, device=CARD), FP16_FACTOR]),
    ]


def test_kernels_compute_what_torch_does() -> None:
    """fp16 has eleven bits."""
    from llmft_cli.training.fast.kernels import triton

    for name, arguments in kernel_cases():
        copies = [[item.clone() if isinstance(item, torch.Tensor) else item for item in arguments] for _ in range(2)]
        getattr(triton, name)(*copies[0])
        getattr(plain, name)(*copies[1])
        for ours, theirs in zip(*copies, strict=True):
            if isinstance(ours, torch.Tensor):
                assert distance(ours, theirs) < 1.5e-3, name


def dense_model(dtype: torch.dtype, **flags: Any) -> Any:
    """The same weights in every type: those of bf16. No B matrix is zero."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8
    )
    base = random_model.build(shape, CARD, "none", torch.float32)
    for weights in base.parameters():
        weights.data = weights.data.bfloat16().to(dtype)
    model = make_trainable(base, resolve(flags), "random").train()
    generator = torch.Generator(CARD).manual_seed(1)
    for name, weights in model.named_parameters():
        if weights.requires_grad:
            spread = 0.02 if "lora_B" in name else weights.shape[1] ** -0.5
            weights.data.normal_(std=spread, generator=generator)
    return model


def gradients(model: Any, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Of packed rows, unscaled."""
    torch.manual_seed(2)
    batch = random_batch(ROWS, VOCABULARY, CARD)
    loss_and_gradients(model, batch, torch.tensor(1000.0, device=CARD) / scale)
    return {name: weights.grad.double() / scale for name, weights in model.named_parameters() if weights.requires_grad}


@pytest.mark.parametrize("fast", [True, False])
def test_gradients_are_nearer_to_fp32s_than_bf16s_are(fast: bool) -> None:
    exact = gradients(dense_model(torch.float32, fast=False))
    errors = {}
    for dtype, scale in ((torch.float16, SCALE), (torch.bfloat16, 1.0)):
        model = dense_model(dtype, fast=fast)
        assert bool(blocks_of(model)) is fast
        found = gradients(model, scale)
        errors[dtype] = [distance(found[name], exact[name]) for name in exact]
    print(f"worst gradient: fp16 {max(errors[torch.float16]):.2e}, bf16 {max(errors[torch.bfloat16]):.2e}")
    assert max(errors[torch.float16]) < 0.5 * max(errors[torch.bfloat16])


def test_fast_layers_in_fp32_compute_what_plain_ones_do() -> None:
    found, exact = (gradients(dense_model(torch.float32, fast=fast)) for fast in (True, False))
    assert max(distance(found[name], exact[name]) for name in exact) < 1e-4


@pytest.mark.usefixtures("turing")
def test_an_older_gpu_computes_the_same_without_flash_attention_and_bf16() -> None:
    """With a mask and Triton's kernels, which are tested first; also replayed as a CUDA graph."""
    assert select.has_triton(CARD)
    model = dense_model(torch.float16)
    assert model.get_base_model().config._attn_implementation == masked.NAME
    assert blocks_of(model)
    exact, found = gradients(dense_model(torch.float32, fast=False)), gradients(model, SCALE)
    assert max(distance(found[name], exact[name]) for name in exact) < 0.02
    passes = recorded_passes(model, CARD, partial(loss_and_gradients, model))
    assert passes is not None
    torch.manual_seed(2)
    batch = random_batch(ROWS, VOCABULARY, CARD)
    for _ in range(3):
        model.zero_grad()
        passes.run(batch, torch.tensor(1000.0, device=CARD) / SCALE)
    assert passes.failure is None
    trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    assert max(distance(trained[name].grad / SCALE, found[name]) for name in found) < 0.01


def seven_b_wide() -> LlamaConfig:
    """Llama-2-7B with a quarter of its layers."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=8,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )


def peaks(dtype: str, **flags: Any) -> tuple[int, int]:
    """Predicted and measured memory of the fast plan with all sequences in one pass."""
    config: Config = resolve({"batch_size": 4, "gradient_accumulation_steps": 1, "max_seq_length": TOKENS, **flags})
    kind, able = compute_types.torch_type(dtype), select.abilities_of(CARD)
    found = predicted_options(seven_b_wide(), config, kind, longest_batches(config), None, able=able)
    option = choose([one for one in found if one.plan.batch_size == config.batch_size], None, "fast")
    assert option is not None
    model = make_trainable(random_model.build(seven_b_wide(), CARD, "nf4", kind), config, "random")
    apply_plan(model, option.plan)
    measured = measure(model, full_batch(config.batch_size, TOKENS), option.plan.optim).peak_bytes
    print(f"{dtype} {flags}: predicted {option.breakdown.total / 2**30:.3f}, measured {measured / 2**30:.3f} GiB")
    return option.breakdown.total, measured


@pytest.mark.parametrize("flags", [{}, {"gradient_checkpointing": True}, {"fast": False}])
def test_the_peak_is_predicted(flags: dict[str, Any]) -> None:
    predicted, measured = peaks("fp16", **flags)
    assert measured == pytest.approx(predicted, rel=0.01 if flags.get("fast", True) else 0.03)


def test_the_peak_is_predicted_in_fp32() -> None:
    predicted, measured = peaks("fp32", batch_size=2)
    assert measured == pytest.approx(predicted, rel=0.03)


@pytest.mark.usefixtures("turing")
def test_the_peak_is_predicted_of_an_older_gpu() -> None:
    predicted, measured = peaks("fp16")
    assert measured == pytest.approx(predicted, rel=0.03)


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> RunDir:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is {one} {other}?"},
                {"role": "assistant", "content": f"{one}, not {other}."},
            ]
        }
        for one in WORDS
        for other in WORDS
    ]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path / "run")
    prepare(run, [str(data)], resolve({"model": str(tiny_model_dir), "max_seq_length": 96, "val_size": 6.0}), Silent())
    return run


def trained(run: RunDir, reporter: Silent | None = None, resume: bool = False, **flags: Any) -> TrainResult:
    values = {"device": "cuda", "max_steps": 30, "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 5e-3}
    stages = ("prepare", "train") if resume else ("prepare",)
    config = resolve({"compute_dtype": "fp16", **values, **flags}, saved=run.saved_settings(*stages))
    return train(run, config, reporter or Silent(), overwrite=not resume, resume=resume)


def losses(run: RunDir) -> list[float]:
    return [row["loss"] for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row]


class Told(Silent):
    """Collects notes, and requests a stop after a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self._stop_after = stop_after

    def note(self, message: str) -> None:
        self.notes.append(message)
        if self._stop_after is not None and message.startswith(f"step {self._stop_after}: held-out loss"):
            os.kill(os.getpid(), signal.SIGINT)


def test_losses_are_those_of_bf16_and_fp32(run: RunDir) -> None:
    """Fast layers, planned, replayed as CUDA graphs."""
    found = {}
    for dtype in ("bf16", "fp16", "fp32"):
        told = Told()
        result = trained(run, told, max_steps=12, compute_dtype=dtype)
        assert (result.plan["fast"], result.skipped_steps) == (True, 0 if dtype == "fp16" else None)
        assert result.plan["predicted_peak_bytes"] > 0
        assert not [note for note in told.notes if "without CUDA graphs" in note]
        found[dtype] = losses(run)
    assert found["fp16"] == pytest.approx(found["fp32"], rel=5e-3)
    assert found["bf16"] == pytest.approx(found["fp32"], rel=2e-2)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit"])
@pytest.mark.parametrize("flags", [{}, {"fast": False}, {"gradient_accumulation_steps": 2, "plan": "given"}])
def test_a_forced_overflow_is_survived(run: RunDir, optim: str, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting from a huge scale, with recorded passes: steps are skipped until the scale fits, then the loss falls."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40))
    told = Told()
    result = trained(run, told, optim=optim, max_steps=60, **flags)
    assert result.skipped_steps is not None
    assert 10 < result.skipped_steps < 40
    assert [note for note in told.notes if note.startswith(f"{result.skipped_steps} steps skipped")]
    assert not [note for note in told.notes if "without CUDA graphs" in note]
    found = losses(run)
    assert all(loss == loss for loss in found)
    assert sum(found[-3:]) < 0.9 * sum(found[:3])


def test_dora_keeps_autocast_and_its_scaler(run: RunDir) -> None:
    before = trained(run, max_steps=1, warmup_ratio=0.0, use_dora=True).train_loss
    result = trained(run, max_steps=12, use_dora=True)
    assert result.eval_loss is not None
    assert result.eval_loss < before


@pytest.mark.usefixtures("turing")
@pytest.mark.parametrize("flags", [{}, {"fast": False}, {"use_dora": True}, {"quantization": "int8"}])
def test_a_whole_training_as_on_an_older_gpu(run: RunDir, flags: dict[str, Any]) -> None:
    """`auto` is fp16 there."""
    told = Told()
    result = trained(run, told, max_steps=12, compute_dtype="auto", **flags)
    assert result.plan["compute_dtype"] == "float16"
    assert not [note for note in told.notes if "without CUDA graphs" in note]
    assert losses(run)[-1] < losses(run)[0]


def test_a_resumed_training_goes_on_with_its_scale(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30, growth_interval=4))
    options = {"max_steps": 24, "eval_steps": 6.0, "save_total_limit": 4}
    trained(run, **options)
    whole = losses(run)
    states = {step: scaler_state(run, step) for step in (12, 24)}
    with pytest.raises(Interrupted):
        trained(run, Told(stop_after=12), **options)
    assert scaler_state(run, 12) == states[12]
    trained(run, resume=True, **options)
    assert scaler_state(run, 24) == states[24]
    assert losses(run) == pytest.approx(whole, rel=1e-3)


def scaler_state(run: RunDir, step: int) -> Any:
    return torch.load(run.checkpoints / f"checkpoint-{step}" / "scaler.pt", weights_only=True)


def test_memory_that_runs_out_is_recovered_from(run: RunDir) -> None:
    """A failed pass is repeated in smaller ones, with the same scale."""
    from llmft_cli.training.loop import trainer as module

    expected = trained(run, max_steps=6, batch_size=4, plan="given")
    whole = losses(run)
    work, failed = module.QLoRATrainer._loss_and_gradients, []

    def failing_once(self: Any, model: Any, inputs: Any, divisor: torch.Tensor) -> torch.Tensor:
        if self.state.global_step == 2 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return work(self, model, inputs, divisor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.QLoRATrainer, "_loss_and_gradients", failing_once)
        result = trained(run, max_steps=6, batch_size=4, plan="given")
    assert (expected.out_of_memory_retries, result.out_of_memory_retries) == (0, 1)
    assert losses(run) == pytest.approx(whole, rel=2e-3)
