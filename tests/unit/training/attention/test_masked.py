"""Attention by a mask computes what the model's own attention does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmft_cli.training.attention.masked import use_masked_attention
from llmft_cli.training.step.loss import summed_loss

from ..attention_by_definition import built, packed


@pytest.mark.parametrize(
    "changes",
    [
        {},  # two query heads to a key-value head
        {"num_key_value_heads": 4},
        {"model_type": "mistral", "sliding_window": 6},
        {"model_type": "granite", "attention_multiplier": 0.3},
    ],
)
def test_masked_attention_is_the_models_own(changes: dict[str, Any]) -> None:
    """Loss and gradients of packed rows, with a mask that transformers makes."""
    results = []
    for masked in (False, True):
        model = built(**changes).train()
        if masked:
            use_masked_attention(model)
        embeddings = model.get_input_embeddings().weight.requires_grad_()
        loss = summed_loss(model, packed())
        loss.backward()
        results.append((loss.item(), embeddings.grad))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    assert torch.allclose(results[1][1], results[0][1], atol=1e-5)
