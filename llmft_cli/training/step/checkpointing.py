"""Gradient checkpointing of the first layers of a model: they keep only their input and are recomputed in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.training.fast import architectures

if TYPE_CHECKING:
    from peft import PeftModel


def checkpoint_layers(model: PeftModel, count: int | None) -> None:
    """Checkpoint exactly the first `count` layers; None means all. transformers can only checkpoint all of them."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    for index, layer in enumerate(decoder_layers(model)):
        wanted = count is None or index < count
        block = architectures.block_of(layer)
        if block is not None:
            block.recompute = wanted
        else:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = wanted


def is_checkpointed(layer: Any) -> bool:
    block = architectures.block_of(layer)
    return bool(layer.gradient_checkpointing if block is None else block.recompute)
