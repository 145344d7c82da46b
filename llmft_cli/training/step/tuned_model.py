"""A base model made ready to train: adapter, fused products, attention, checkpointing, embeddings."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from llmft_cli.base.cpu_memory import has_room
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import Config
from llmft_cli.training.attention import flash_kernels, varlen
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


def make_trainable(
    base: PreTrainedModel,
    config: Config,
    base_name: str,
    checkpointed_layers: int | None,
    embeddings_on_cpu: bool = False,
    dequantized_weights: bool = False,
    activation_offloading: bool = False,
    able: Abilities | None = None,
) -> PeftModel:
    """The base with a fresh adapter, set up for training steps; also for a base on the `meta` device.

    Args:
        checkpointed_layers: how many layers, the first ones, keep only their input and are computed
            again in the backward pass; None is all of them.
        embeddings_on_cpu: look the input embeddings up in the host's memory; not for a base on the `meta` device.
        dequantized_weights: keep the 16-bit values of 4-bit weights, where the layers are fast ones.
        activation_offloading: keep what checkpointed layers keep in the host's memory, where they are fast ones.
        able: what the GPU can that a base on the `meta` device stands for; None is all that there is.

    Raises:
        ConfigError: no module of the model matches the target modules, or the embeddings are needed on the GPU.
    """
    import torch

    on_meta = base.device.type == "meta"
    able = able or abilities_of(base.device)
    with base.device if on_meta else nullcontext():  # not drawn on the CPU first
        model = add_adapter(base, config, base_name)
    set_attention(base, able)
    if base_type(model) == torch.float16:
        # Parts of a sum that are rounded to fp16 in between would overflow before the sum does.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if why_plain_layers(model, config, able) is None:
        architectures.use_fast_layers(model)
        architectures.keep_dequantized(model, dequantized_weights)
        architectures.offload_activations(model, activation_offloading)
    elif computes_in_base_type(config):
        lora_product.use_fused_products(model, base_type(model))
    checkpoint_layers(model, checkpointed_layers)
    if embeddings_on_cpu:
        keep_embeddings_on_cpu(model)
    return model


def set_attention(base: PreTrainedModel, able: Abilities | None) -> None:
    chosen = varlen.choose_attention(base, able)
    if chosen == varlen.MASKED:
        varlen.use_masked_attention(base)
    elif chosen == varlen.NAME:
        varlen.use_varlen_attention(base)
        if base.device.type == "cuda":
            flash_kernels.use_newer_kernels(base)


def laid_out(base: PreTrainedModel, config: Config, base_name: str, plan: Plan) -> PeftModel:
    """As `make_trainable`, by a plan."""
    return make_trainable(
        base,
        config,
        base_name,
        plan.checkpointed_layers,
        plan.embeddings_on_cpu,
        plan.dequantized_weights,
        plan.activation_offloading,
    )


def why_plain_layers(model: PeftModel, config: Config, able: Abilities | None = None) -> str | None:
    """What keeps a model's layers transformers' and PEFT's own, in a few words; None where they are fast ones.

    Args:
        able: what the GPU can that a model on the `meta` device stands for.
    """
    if not config.fast:
        return "--no-fast"
    if not computes_in_base_type(config):
        return "DoRA and int8 compute otherwise"
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
    """Whether a base on the CPU may keep the values of its 4-bit weights, in its type and a quarter of the RAM that is free."""
    if base.device.type != "cpu":
        return False
    packed_bytes = sum(weights.numel() for weights in base.parameters() if getattr(weights, "quant_state", None) is not None)
    return has_room(2 * packed_bytes * base.dtype.itemsize)
