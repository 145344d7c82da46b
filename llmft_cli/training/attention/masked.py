"""Attention by a mask that is built once for all layers, with torch's memory-efficient kernel: for older GPUs and fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "llmft_masked"


def use_masked_attention(model: PreTrainedModel) -> None:
    """Make the model attend with `additive_mask`, which transformers builds once per pass."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, masked_attention)
    AttentionMaskInterface.register(NAME, additive_mask)
    model.set_attn_implementation(NAME)


def can_use_masked_attention(model: PreTrainedModel) -> bool:
    """Whether the model uses plain scaled dot-product attention in transformers."""
    plain = not getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return plain and bool(model._supports_attention_backend) and model.config._attn_implementation == "sdpa"


def additive_mask(*, dtype: torch.dtype, **options: Any) -> torch.Tensor:
    """A mask to add to the scores, of shape (batch, 1, length, length), for transformers' AttentionMaskInterface.

    transformers' own `eager_mask` (5.17) copies a scalar to the GPU, which is not allowed during CUDA graph capture.
    """
    import torch
    from transformers.masking_utils import sdpa_mask

    allowed: Any = sdpa_mask(**options | {"allow_is_causal_skip": False})
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def masked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with an additive mask, for transformers' AttentionInterface; shapes as in `varlen_attention`.

    Args:
        attention_mask: added to the scores, of shape (batch, 1, length, length); None means causal attention.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    shared = query.shape[1] // key.shape[1]  # the memory-efficient kernel needs as many key heads as query heads
    if shared > 1:
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    causal = attention_mask is None and query.shape[2] > 1
    if query.is_meta:  # on `meta`, torch would take the math path, with the full matrix of scores
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        result: torch.Tensor = kernel(query, key, value, attention_mask, True, dropout, causal, scale=scaling)[0]
    else:
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            result = scaled_dot_product_attention(query, key, value, attention_mask, dropout, causal, scale=scaling)
    return result.transpose(1, 2), None
