"""A base model made ready to train: adapter, fast layers, attention; then the plan: checkpointing, offloading, embeddings."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from llmft_cli.base.cpu_memory import has_room
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import Config
from llmft_cli.training.attention.select import select_attention
from llmft_cli.training.fast import architectures
from llmft_cli.training.fast.kernels.select import abilities_of
from llmft_cli.training.step import lora_product
from llmft_cli.training.step.checkpointing import checkpoint_layers
from llmft_cli.training.step.cpu_embeddings import keep_embeddings_on_cpu

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from llmft_cli.settings.compute_types import Abilities
    from llmft_cli.training.plan import Plan


def make_trainable(base: PreTrainedModel, config: Config, base_name: str, able: Abilities | None = None) -> PeftModel:
    """The base with a new adapter, set up for training steps; also for a base on the `meta` device.

    Without `apply_plan`, nothing is checkpointed, offloaded or kept dequantised.

    Args:
        able: abilities of the GPU that a base on the `meta` device stands for; None means all.

    Raises:
        ConfigError: no module of the model matches the target modules.
    """
    import torch

    on_meta = base.device.type == "meta"
    able = able or abilities_of(base.device)
    with base.device if on_meta else nullcontext():  # the adapter is not drawn on the CPU first
        model = add_adapter(base, config, base_name)
    select_attention(base, able)
    if base_type(model) == torch.float16:
        # Partial sums rounded to fp16 would overflow before the sum does.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if why_plain_layers(model, config, able) is None:
        architectures.use_fast_layers(model)
    elif computes_in_base_type(config):
        lora_product.use_fused_products(model, base_type(model))
    return model


def apply_plan(model: PeftModel, plan: Plan) -> None:
    """Checkpoint, offload, move and keep dequantised what a plan says; the last only works for fast layers, as does offloading.

    Raises:
        ConfigError: the plan puts embeddings on the CPU that are needed on the GPU.
    """
    if architectures.blocks_of(model):
        architectures.keep_dequantized(model, plan.dequantized_weights)
        architectures.offload_activations(model, plan.activation_offloading)
    checkpoint_layers(model, plan.checkpointed_layers)
    if plan.embeddings_on_cpu:
        keep_embeddings_on_cpu(model)


def why_plain_layers(model: PeftModel, config: Config, able: Abilities | None = None) -> str | None:
    """Why a model's layers are transformers' and PEFT's own, in a few words; None if they are fast layers.

    Args:
        able: abilities of the GPU that a model on the `meta` device stands for.
    """
    if not config.fast:
        return "--no-fast"
    if not computes_in_base_type(config):
        return "DoRA and int8 are not supported"
    if able is not None and not able.triton:
        return architectures.NO_TRITON
    return architectures.why_not_fast(model)


def base_type(model: PeftModel) -> torch.dtype:
    """The type of the base's dense weights."""
    return next(
        weights.dtype for name, weights in model.named_parameters() if "lora_" not in name and weights.is_floating_point()
    )


def computes_in_base_type(config: Config) -> bool:
    """Whether steps need no autocast: plain LoRA on 4-bit or dense weights."""
    return not config.use_dora and config.quantization != "int8"


def has_room_for_dequantized_weights(base: PreTrainedModel) -> bool:
    """Whether a base on the CPU can keep its 4-bit weights dequantised in a quarter of the free RAM."""
    if base.device.type != "cpu":
        return False
    packed_bytes = sum(weights.numel() for weights in base.parameters() if getattr(weights, "quant_state", None) is not None)
    return has_room(2 * packed_bytes * base.dtype.itemsize)
