"""Which attention a model trains with, by its GPU and type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmft_cli.settings.compute_types import ALL_ABILITIES, Abilities
from llmft_cli.training.attention import masked, varlen
from llmft_cli.training.attention.select import attention_for

from ..attention_by_definition import built
from ..meta_models import META

OLDER = Abilities(bf16=False, flash_attention=False, triton=True)


@pytest.mark.parametrize(
    ("able", "dtype", "expected"),
    [
        (ALL_ABILITIES, torch.bfloat16, varlen.NAME),
        (ALL_ABILITIES, torch.float16, varlen.NAME),
        (ALL_ABILITIES, torch.float32, masked.NAME),  # FlashAttention knows 16-bit types alone
        (OLDER, torch.float16, masked.NAME),
        (OLDER, torch.float32, masked.NAME),
        (None, torch.float32, None),  # a CPU
        (None, torch.bfloat16, None),
    ],
)
def test_the_attention_follows_from_what_the_gpu_can_and_the_type(
    able: Abilities | None, dtype: torch.dtype, expected: str | None
) -> None:
    model = built(META).to(dtype)
    assert attention_for(model, able) == expected


@pytest.mark.parametrize("changes", [{"model_type": "gemma2"}, {"model_type": "gpt_oss"}])
def test_scores_that_are_more_than_products_are_not_masked_by_us(changes: dict[str, Any]) -> None:
    """Gemma 2 caps its scores, gpt-oss has attention sinks."""
    if changes["model_type"] == "gpt_oss":
        changes = changes | {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 32}
    assert attention_for(built(META, **changes), OLDER) is None
