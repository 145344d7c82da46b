"""The model of a training: the quantised base, loaded, with an adapter, and laid out by the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmft_cli.base.libraries import import_transformers
from llmft_cli.base.reporter import Reporter
from llmft_cli.models import loading
from llmft_cli.models.model_source import ModelSource
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config
from llmft_cli.training.starting_adapter import StartingAdapter, load_into

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from llmft_cli.training.plan import Plan


def load(source: ModelSource, config: Config, device: torch.device, reporter: Reporter) -> PreTrainedModel:
    """The quantised base on the device, within `--max-vram`."""
    from llmft_cli.training.device_memory import hold_to

    if config.max_vram is not None and device.type == "cuda":
        hold_to(config.max_vram, device)
    reporter.note(f"loading {source.name} ({config.quantization}) on {device}")
    base = loading.load_base(source, device, compute_types.torch_type(config.compute_dtype), config.quantization)
    loading.keep_training_layout(base)
    if config.quantization != "none" and (notice := loading.dense_experts_notice(base)):
        reporter.warn(notice)
    return base


def build(
    base: PreTrainedModel, base_name: str, config: Config, plan: Plan, start: StartingAdapter | None, reporter: Reporter
) -> PeftModel:
    """The base with an adapter, drawn from the seed or with the weights to start from, and laid out by the plan."""
    from llmft_cli.training.step.row_separation import settle_attention, settle_rows
    from llmft_cli.training.step.tuned_model import (
        apply_plan,
        has_room_for_dequantized_weights,
        make_trainable,
        why_plain_layers,
    )

    import_transformers().set_seed(config.seed)
    own_attention = base.config._attn_implementation
    kept = plan.dequantized_weights or has_room_for_dequantized_weights(base)
    model = make_trainable(base, config, base_name)
    if start is not None:
        load_into(model, start)
    apply_plan(model, replace(plan, dequantized_weights=kept))
    if plain := why_plain_layers(model, config):
        reporter.note(f"fused layers are not used: {plain}")
    settle_attention(model, own_attention)
    if not settle_rows(model):
        reporter.note("this model mixes packed rows: running each row separately")
    return model
