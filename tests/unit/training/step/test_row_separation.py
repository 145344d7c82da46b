"""Models that have no fast layers: tiny ones of many architectures, rows packed and alone, checkpointed and not.

What differs between them is how a causal model calls its decoder and what it wants back (GPT-2, mixtures of experts),
linear layers that are more than that (routers), and whether packed rows are kept apart.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models import loading
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.step.checkpointing import checkpoint_layers
from llmft_cli.training.step.loss import summed_loss
from llmft_cli.training.step.row_separation import settle_attention, settle_rows
from llmft_cli.training.step.tuned_model import make_trainable

KEPT_APART = (
    *("llama", "gemma2", "gemma3_text", "olmo2", "cohere2", "granite", "starcoder2", "phi", "gpt2", "gpt_neox", "gptj"),
    *("qwen3_moe", "mixtral", "llama4_text", "phimoe", "lfm2"),
)
SEE_OTHERS = (
    *("bloom", "falcon", "mpt", "opt", "gpt_oss", "qwen3_next", "qwen3_5_text", "jamba", "recurrent_gemma", "mamba2"),
)
# By the names that configurations have for them; a configuration takes those it knows.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "moe_intermediate_size", "shared_expert_intermediate_size"), 128),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout"), 0.0),
    **dict.fromkeys(("router_jitter_noise", "input_jitter_noise"), 0.0),
    **{"vocab_size": 512, "num_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "rotary_dim": 16, "num_experts_per_tok": 2},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 16},
}
LENGTHS = ((7, 20, 5), (12, 20))
CLOSE = 1e-6


def tiny(kind: str) -> Any:
    """In fp32, with weights large enough to show errors, and an adapter on all linear layers."""
    config = AutoConfig.for_model(kind)
    for name, value in SIZES.items():
        if hasattr(config, name):
            with suppress(AttributeError):  # some are reckoned from others
                setattr(config, name, value)
    with suppress(AttributeError):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
    model = make_trainable(base, resolve({}), "tiny")
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.1)
    return model.train()


def sequences() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for lengths in LENGTHS:
        ids = torch.randint(3, 512, (sum(lengths),), generator=generator).tolist()
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        labels = [IGNORED if place in starts else token for place, token in enumerate(ids)]
        made.append({"input_ids": ids, "labels": labels, "row_lengths": list(lengths)})
    return made


def rows_of(sequence: dict[str, list[int]]) -> list[dict[str, list[int]]]:
    ends = [sum(sequence["row_lengths"][:number]) for number in range(len(sequence["row_lengths"]) + 1)]
    return [
        {name: sequence[name][start:end] for name in ("input_ids", "labels")} | {"row_lengths": [end - start]}
        for start, end in pairwise(ends)
    ]


def gradients(model: Any) -> torch.Tensor:
    model.zero_grad()
    summed_loss(model, collate(sequences())).backward()  # type: ignore[no-untyped-call]
    found = [weights.grad.flatten() for weights in model.parameters() if weights.grad is not None]
    assert found
    return torch.cat(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kept_apart"), [*((kind, True) for kind in KEPT_APART), *((kind, False) for kind in SEE_OTHERS)]
)
def test_packed_rows_have_the_loss_of_rows_alone(kind: str, kept_apart: bool) -> None:
    """Mixtures of experts, GPT-2 and Falcon could not be trained at all, and rows of the last dozen saw each other."""
    model = tiny(kind)
    assert settle_rows(model) == kept_apart
    packed = summed_loss(model, collate(sequences()))
    alone = sum(summed_loss(model, collate([row])) for sequence in sequences() for row in rows_of(sequence))
    assert packed.item() == pytest.approx(float(alone), rel=CLOSE)
    expected = gradients(model)
    checkpoint_layers(model, None)
    assert (gradients(model) - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("kind", "expected"), [("gpt_oss", "eager"), ("cohere2", "llmft_varlen")])
def test_attention_that_adds_something_is_left_to_the_model(kind: str, expected: str) -> None:
    """gpt-oss has a sink in each head's softmax, which `varlen_attn` does not support."""
    from llmft_cli.training.attention import varlen

    model = tiny(kind)
    base = model.get_base_model()
    own = base.config._attn_implementation
    varlen.use_varlen_attention(base)
    settle_attention(model, own)
    assert base.config._attn_implementation == expected


def test_experts_that_stay_in_16_bits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture asked for in 4 bits may take four times the memory: 3 layers of 4 experts of 3 x 128 x 128 values in fp32."""
    monkeypatch.setattr(loading, "GIBIBYTE", 2**10)
    notice = loading.dense_experts_notice(tiny("mixtral"))
    assert notice is not None
    assert f" {3 * 4 * 3 * 128 * 128 * 4 / 2**10} of " in notice
    assert loading.dense_experts_notice(tiny("llama")) is None
