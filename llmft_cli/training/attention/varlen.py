"""Attention within each row of sequences that contain several packed rows.

transformers separates packed rows with a mask of shape (batch, 1, length, length): its memory is quadratic in the length,
and it rules out the flash kernel. torch's `varlen_attn` takes the row boundaries instead; it needs compute capability 8.0
and a 16-bit type.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

from llmft_cli.settings import compute_types

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedModel


NAME = "llmft_varlen"
LARGEST_HEAD_DIM, HEAD_DIM_STEP = 256, 8  # of the flash kernel, which supports multiples of 8


def use_varlen_attention(model: PreTrainedModel) -> None:
    """Make the model attend within rows; its forward needs `cu_seq_lens_q` from then on."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen_attention)
    # No mask function is registered for this name, so transformers builds no masks.
    model.set_attn_implementation(NAME)


def can_use_varlen_attention(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether `varlen_attn` computes the same as this model's attention and runs on the device; `meta` means a GPU."""
    config = model.config.get_text_config()
    plain = not getattr(config, "attn_logit_softcapping", None) and not getattr(config, "attention_dropout", 0)
    size = head_dim(config)
    takes_heads = size <= LARGEST_HEAD_DIM and size % HEAD_DIM_STEP == 0
    return plain and bool(model._supports_attention_backend) and takes_heads and has_flash(device)


def head_dim(config: Any) -> int:
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


def has_flash(device: torch.device) -> bool:
    import torch

    if device.type == "meta":
        return True
    return device.type == "cuda" and compute_types.abilities(torch.cuda.get_device_capability(device)).flash_attention


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    first_rows_alone: bool = False,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within rows, for transformers' AttentionInterface.

    Args:
        query: of shape (batch, heads, length, head_dim); key and value with as many heads or fewer.
        cu_seq_lens_q: the start of each row in the flattened batch, and the end of the last; int32.
        max_length_q: tokens of the longest row.
        first_rows_alone: whether only the first row of each sequence matters; it cannot attend to later rows anyway.
        sliding_window: number of tokens that a token attends to, itself included.

    Returns:
        Of shape (batch, length, heads, head_dim).
    """
    from torch.nn.attention.varlen import varlen_attn

    if first_rows_alone and (sliding_window is None or sliding_window >= max_length_q) and has_faster_dense(query.device):
        return dense_attention(query, key, value, scaling), None
    batch, _heads, length, _dim = query.shape
    dtype = kernel_dtype(value)
    query, key, value = (states.transpose(1, 2).flatten(0, 1).to(dtype) for states in (query, key, value))
    starts, longest = cu_seq_lens_q, max_length_q
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    options: dict[str, Any] = {"enable_gqa": True} if takes_enable_gqa(varlen_attn) else {}
    result: Any = varlen_attn(query, key, value, starts, starts, longest, longest, scale=scaling, window_size=window, **options)
    return result.unflatten(0, (batch, length)), None


def kernel_dtype(states: torch.Tensor) -> torch.dtype:
    """The autocast type if enabled: FlashAttention takes only 16-bit types, and DoRA's scales give fp32 projections."""
    import torch

    kind = states.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else states.dtype


@cache
def has_faster_dense(device: torch.device) -> bool:
    """Whether cuDNN's attention, which has no row boundaries, is faster; on an H100 twice as fast as FlashAttention-2."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def dense_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention within whole sequences; shapes as in `varlen_attention`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        shared = query.shape[1] != key.shape[1]
        result = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared)
    return result.transpose(1, 2)


@cache
def takes_enable_gqa(kernel: Callable[..., torch.Tensor]) -> bool:
    """Whether torch's kernel has the argument `enable_gqa`; torch 2.11's supports fewer key heads without it."""
    return "enable_gqa" in inspect.signature(kernel).parameters
