"""On an NVIDIA GPU: plain layers, and fast layers of other types than Llama. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import AutoConfig

from llmft_cli.models import random_model
from llmft_cli.settings.config import resolve
from llmft_cli.training.attention import varlen
from llmft_cli.training.fast import architectures
from llmft_cli.training.fast.joined_linear import JoinedLinear, Member
from llmft_cli.training.planning.simulation import BatchShape
from llmft_cli.training.profiling.measuring import random_batch
from llmft_cli.training.step.lora_product import LoraProduct
from llmft_cli.training.step.loss import summed_loss
from llmft_cli.training.step.row_separation import settle_attention, settle_rows
from llmft_cli.training.step.tuned_model import make_trainable

pytestmark = pytest.mark.gpu

CARD = torch.device("cuda", 0)
VOCABULARY = 4096
SHAPE = {
    **{"vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 64},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
ROWS = BatchShape(2, 512, 1000, 8, 128)


def tuned(kind: str, sizes: dict[str, Any], **flags: Any) -> tuple[Any, str]:
    """A model of random weights, and the attention that transformers had chosen."""
    torch.manual_seed(0)
    base = random_model.build(AutoConfig.for_model(kind, **SHAPE, **sizes), CARD, "nf4", torch.bfloat16)
    own = base.config._attn_implementation
    model = make_trainable(base, resolve(flags), "random").train()
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(std=0.02)
        elif "sinks" in name:
            weights.data.fill_(2.0)
    return model, own


def product_of(base: torch.nn.Linear, rows: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
    linear = JoinedLinear([Member(base, lora_a, lora_b, 1.0)], rows.dtype)  # type: ignore[arg-type]
    return LoraProduct.apply(rows, rows, linear, lora_a, lora_b)  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.parametrize("bias", [None, 0.0, 8.0])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(2048, 4096, 4096), (1024, 4096, 11_008), (512, 11_008, 4096)])
def test_a_small_update_is_not_rounded_away(tokens: int, inputs: int, outputs: int, bias: float | None) -> None:
    """cuBLAS rounds a product before `addmm` adds it: on an H100, 1/100 of an update of 1/10,000 was left."""
    torch.manual_seed(0)
    base = torch.nn.Linear(inputs, outputs, bias is not None, CARD, torch.bfloat16).requires_grad_(False)
    if bias is not None:
        base.bias.fill_(bias)
    rows = torch.randn(tokens, inputs, device=CARD, dtype=torch.bfloat16)
    lora_a = torch.randn(16, inputs, device=CARD) / inputs**0.5
    lora_b = 1e-4 * torch.randn(outputs, 16, device=CARD)
    found, without = (product_of(base, rows, lora_a, b) for b in (lora_b, torch.zeros_like(lora_b)))
    update = rows.double() @ lora_a.double().t() @ lora_b.double().t()
    there = ((found.double() - without.double()) * update).sum() / update.square().sum()
    assert there.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("inputs", [4096, 96])
def test_products_are_those_of_bitsandbytes_and_of_the_adapter(inputs: int) -> None:
    """Rows of 96 values end within a block of 64, which the kernel for whole blocks cannot handle."""
    torch.manual_seed(0)
    base = bitsandbytes.nn.Linear4bit(inputs, 512, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to(CARD)
    rows = torch.randn(300, inputs, device=CARD, dtype=torch.bfloat16)
    lora_a, lora_b = torch.randn(16, inputs, device=CARD) / inputs**0.5, torch.randn(512, 16, device=CARD)
    weight = bitsandbytes.functional.dequantize_4bit(base.weight, base.weight.quant_state).double()
    expected = rows.double() @ weight.t() + rows.double() @ lora_a.double().t() @ lora_b.double().t()
    assert (product_of(base, rows, lora_a, lora_b) - expected).norm() <= 1e-2 * expected.norm()


def test_gpt_oss_attends_by_itself() -> None:
    """`varlen_attn` does not support the sinks in the softmax of its heads."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}
    model, own = tuned("gpt_oss", sizes, target_modules="q_proj,k_proj,v_proj,o_proj")
    causal = model.get_base_model()
    settle_attention(model, own)
    assert causal.config._attn_implementation == own != varlen.NAME
    settle_rows(model)
    assert torch.isfinite(summed_loss(model, random_batch(ROWS, VOCABULARY, CARD)))


def test_dora_attends_within_rows() -> None:
    """Its scales give FlashAttention fp32 inputs under Trainer's autocast."""
    model, own = tuned("llama", {}, use_dora=True)
    assert not architectures.blocks_of(model)
    settle_attention(model, own)
    assert model.get_base_model().config._attn_implementation == varlen.NAME
    assert settle_rows(model)
    batch = random_batch(ROWS, VOCABULARY, CARD)
    with torch.autocast("cuda", torch.bfloat16):
        loss = summed_loss(model, batch)
    loss.backward()
    assert loss.item() / 1000 == pytest.approx(torch.tensor(float(VOCABULARY)).log().item(), rel=0.1)
    assert all(torch.isfinite(weights.grad).all() for weights in model.parameters() if weights.requires_grad)


@pytest.mark.parametrize("window", [64, 4096])
def test_gemma_3_computes_what_its_own_layers_do(window: int) -> None:
    """With norms of the heads and after both halves of a layer; some layers have a sliding window."""
    sizes = {"sliding_window": window, "layer_types": ["sliding_attention", "full_attention"] * 2}
    batch = random_batch(ROWS, VOCABULARY, CARD)
    losses = []
    for fast in (True, False):
        model, _ = tuned("gemma3_text", sizes, fast=fast)
        assert bool(architectures.blocks_of(model)) == fast
        losses.append(summed_loss(model, batch))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
