"""Layers with weights dequantised once, compared with those of bitsandbytes and PEFT."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

import torch

from llmft_cli.base.reporter import Silent
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import add_adapter
from llmft_cli.serving import dense_weights
from llmft_cli.serving.dense_weights import DenseLinear, use_dense_weights
from llmft_cli.settings.config import resolve

CPU = torch.device("cpu")
# fp16 is accurate to 2^-11; two layers round their weights, inputs and outputs.
ROUNDING = 2e-3


def tuned(model_dir: Path, quantization: str = "nf4", **flags: Any) -> Any:
    """A model with a non-zero adapter."""
    base = loading.load_base(model_source.resolve(str(model_dir), Silent()), CPU, torch.float32, quantization)
    torch.manual_seed(0)
    model = add_adapter(base, resolve({"lora_r": 4, **flags}), "tiny").eval()
    for name, weights in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weights, std=0.05)
    return model


def logits(model: Any, tokens: int) -> torch.Tensor:
    ids = torch.arange(10, 10 + tokens)[None]
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=ids).logits
    return result


def logits_in_fp32(model: Any, tokens: int) -> torch.Tensor:
    """In evaluation mode, bitsandbytes computes in bf16 on processors that can, from weights that it packs anew."""
    model.train()
    result = logits(model, tokens)
    model.eval()
    return result


@pytest.mark.parametrize("tokens", [1, 5, 100])
@pytest.mark.parametrize("quantization", ["nf4", "fp4", "none"])
def test_the_answer_is_that_of_the_quantised_layers(tiny_model_dir: Path, quantization: str, tokens: int) -> None:
    model = tuned(tiny_model_dir, quantization)
    with_adapter = logits_in_fp32(model, tokens)
    with model.disable_adapter():
        without = logits_in_fp32(model, tokens)
    assert (with_adapter - without).norm() > 0.05 * without.norm()
    assert use_dense_weights(model)
    torch.testing.assert_close(logits(model, tokens), with_adapter, rtol=0, atol=ROUNDING * with_adapter.abs().max().item())
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, tokens), without, rtol=0, atol=ROUNDING * without.abs().max().item())


def test_adapters_with_more_than_two_matrices_stay_pefts(tiny_model_dir: Path) -> None:
    model = tuned(tiny_model_dir, use_dora=True)
    before = logits_in_fp32(model, 5)
    assert use_dense_weights(model)
    torch.testing.assert_close(logits(model, 5), before, rtol=0, atol=ROUNDING * before.abs().max().item())
    assert not any(isinstance(module.forward, DenseLinear) for module in model.modules() if hasattr(module, "lora_A"))


def test_every_linear_layer_reads_weights_of_two_bytes(tiny_model_dir: Path) -> None:
    model = tuned(tiny_model_dir)
    assert use_dense_weights(model)
    dense = [module.forward for module in model.modules() if isinstance(getattr(module, "forward", None), DenseLinear)]
    assert len(dense) == 2 * 7 + 1
    assert {linear.weight.dtype for linear in dense} == {torch.float16}


def test_nothing_changes_where_the_ram_has_no_room(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(dense_weights, "has_room", lambda needed_bytes: asked.append(needed_bytes))
    model = tuned(tiny_model_dir)
    assert not use_dense_weights(model)
    assert not any(isinstance(module.forward, DenseLinear) for module in model.modules())
    of_a_layer = 4 * 64 * 64 + 3 * 64 * 128
    assert asked == [2 * (2 * of_a_layer + 64 * model.config.vocab_size)]


@pytest.mark.parametrize(("row", "weight"), [(1e6, 0.1), (6e4, 4.0)], ids=["inputs", "outputs"])
def test_what_is_beyond_fp16_is_computed_in_fp32(row: float, weight: float) -> None:
    linear = DenseLinear(torch.full((3, 8), weight).half(), torch.empty(0, 8).half(), torch.ones(3), None)
    expected = 8 * row * torch.tensor(weight).half().item() + 1
    torch.testing.assert_close(linear(torch.full((1, 1, 8), row)), torch.full((1, 1, 3), expected))


def test_one_row_and_several_are_the_same_but_for_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, projection = (torch.randn(*size, generator=generator).half() for size in ((96, 64), (4, 60)))
    linear = DenseLinear(weight, projection, None, lora=type("Lora", (), {"disable_adapters": False}))
    rows = torch.randn(70, 60, generator=generator)
    expected = rows @ weight[:, :60].float().t() + rows @ projection.float().t() @ weight[:, 60:].float().t()
    for count in (2, 64, 65, 70):
        torch.testing.assert_close(linear(rows[:count]), expected[:count], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(linear(rows[:1]), expected[:1], rtol=2e-3, atol=5e-2)
