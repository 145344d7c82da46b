"""A base model made ready to train: adapter, fused products, attention, checkpointing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.adapters import add_adapter
from llmft_cli.config import Config
from llmft_cli.training import attention, lora_product

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def make_trainable(base: PreTrainedModel, config: Config, base_name: str, checkpointed_layers: int | None) -> PeftModel:
    """The base with a fresh adapter, set up for training steps; also for a base on the `meta` device.

    Args:
        checkpointed_layers: how many layers, the first ones, keep only their input and are computed
            again in the backward pass; None is all of them.

    Raises:
        ConfigError: no module of the model matches the target modules.
    """
    model = add_adapter(base, config, base_name)
    if computes_in_base_type(config, next(base.parameters()).dtype):
        lora_product.use_fused_products(model)
    if attention.can_use_varlen_attention(base, base.device):
        attention.use_varlen_attention(base)
    checkpoint_layers(model, checkpointed_layers)
    return model


def computes_in_base_type(config: Config, base_type: torch.dtype) -> bool:
    """Whether steps need no autocast: plain LoRA on 4-bit or dense bf16 weights. fp16 needs its scaled gradients."""
    import torch

    return not config.use_dora and config.quantization != "int8" and base_type != torch.float16


def checkpoint_layers(model: PeftModel, count: int | None) -> None:
    """Checkpoint the first `count` layers, or all, and no others; transformers' own switch knows only all of them."""
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    for index, layer in enumerate(decoder_layers(model)):
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = count is None or index < count


def decoder_layers(model: Any) -> list[Any]:
    """The layers that transformers can checkpoint, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
