"""Which attention a model trains with: `varlen`, `masked`, or the model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmft_cli.training.attention import flash_kernels, masked, varlen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmft_cli.settings.compute_types import Abilities


def select_attention(model: PreTrainedModel, able: Abilities | None) -> None:
    """Make the model use the fastest attention that computes the same as its own and runs on its device.

    Args:
        able: as in `attention_for`.
    """
    chosen = attention_for(model, able)
    if chosen == masked.NAME:
        masked.use_masked_attention(model)
    elif chosen == varlen.NAME:
        varlen.use_varlen_attention(model)
        if model.device.type == "cuda":
            flash_kernels.use_newer_kernels(model)


def attention_for(model: PreTrainedModel, able: Abilities | None) -> str | None:
    """`varlen.NAME`, `masked.NAME`, or None for the model's own attention.

    Args:
        able: the abilities of the model's GPU, or of the GPU that `meta` stands for; None on a CPU.
    """
    import torch

    if able is None:
        return None
    if not able.flash_attention or model.dtype == torch.float32:
        return masked.NAME if masked.can_use_masked_attention(model) else None
    return varlen.NAME if varlen.can_use_varlen_attention(model, model.device) else None
