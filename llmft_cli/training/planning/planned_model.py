"""The model that plans are predicted with: on the `meta` device, and no deeper than needed.

Creating layers takes time: all 32 of Llama-2-7B take 0.7 s, the few that `layer_costs` simulates a tenth of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from llmft_cli.models import random_model
from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.models.target_modules import target_names
from llmft_cli.settings.config import Config
from llmft_cli.training.planning.layer_costs import DEPTH, FEW, depth_of, layer_list, layers_are_alike

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel


def planned_model(
    shape: PreTrainedConfig, config: Config, dtype: torch.dtype, tuned: Callable[[PreTrainedModel], PeftModel]
) -> PeftModel:
    """The model on the `meta` device; where its layers are alike, only the first few of them.

    Args:
        tuned: adds the adapter, as `tuned_model.make_trainable` does.
    """
    model = tuned(planned_base(shape, config, dtype, whole=names_a_place(config)))
    if depth_of(model) > len(decoder_layers(model)) and not layers_are_alike(model):
        return tuned(planned_base(shape, config, dtype, whole=True))
    return model


def planned_base(shape: PreTrainedConfig, config: Config, dtype: torch.dtype, whole: bool) -> PreTrainedModel:
    base = random_model.unfilled(shape, dtype)
    if not whole:
        cut(base)
    random_model.fill_all(base, torch.device("meta"), config.quantization, dtype)
    return base


def names_a_place(config: Config) -> bool:
    """Whether `target_modules` may mean a module of one layer, as `layers.7.self_attn.q_proj` does."""
    return any(part.isdigit() for name in target_names(config) for part in name.split("."))


def cut(base: PreTrainedModel) -> None:
    """Keep only the first layers of a base model, if the others are like them; `depth_of` still gives the number of all."""
    layers = decoder_layers(base)
    if not layers or not layers_are_alike(base):
        return
    whole_list = layer_list(base)
    if list(whole_list) == layers:
        whole_list._modules = dict(list(whole_list._modules.items())[: FEW + 1])
        setattr(whole_list, DEPTH, len(layers))
