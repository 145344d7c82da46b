"""Step costs of a deep model, extrapolated from its first layers if all layers are alike.

Each further layer adds the same memory and work: one amount for checkpointed layers, another for the rest. Simulating two
small models of each kind gives both amounts, in a tenth of the time of simulating the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.training.fast import architectures
from llmft_cli.training.planning.simulation import BatchShape, Step, simulate
from llmft_cli.training.step.checkpointing import checkpoint_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FEW = 3  # the first and last layers differ: the first passes no gradient on, and the last one's gradient is copied
# Attributes that differ between layers of the same kind.
PLACE = ("layer_idx", "gradient_checkpointing", "training")
# The attribute of a list of layers that `planned_model.cut` shortened: how many there were.
DEPTH = "llmft_depth"


class LayerCosts:
    """Steps of a trainable model on the `meta` device whose layers are alike; each is simulated when it is first needed."""

    def __init__(self, model: PeftModel, batch: BatchShape) -> None:
        self._model, self._batch = model, batch
        self.layers = depth_of(model)

    @cached_property
    def _free(self) -> tuple[Step, Step]:
        """With `FEW` layers and with one more, none of them checkpointed."""
        return pair_of_steps(self._model, self._batch, 0)

    @cached_property
    def _checkpointed(self) -> tuple[Step, Step]:
        """The same with all of them checkpointed."""
        return pair_of_steps(self._model, self._batch, None)

    @cached_property
    def _mixed(self) -> Step:
        """With one checkpointed layer followed by `FEW` others."""
        with only_layers(self._model, 1 + FEW):
            return whole_step(self._model, self._batch, 1)

    def step(self, checkpointed_layers: int) -> Step:
        """The step of the whole model with its first `checkpointed_layers` layers checkpointed."""
        free = self.layers - checkpointed_layers
        if checkpointed_layers == 0:
            return extrapolate(self._free, free)
        all_checkpointed = extrapolate(self._checkpointed, checkpointed_layers)
        if free == 0:
            return all_checkpointed
        # The backward pass first runs through the free layers, while everything is still in memory, then the others.
        more_free = (free - FEW) * cost_of_one_layer(self._free)
        in_free = self._mixed + more_free + (checkpointed_layers - 1) * cost_of_one_layer(self._checkpointed)
        if checkpointed_layers <= FEW or in_free.peak_bytes >= all_checkpointed.peak_bytes:
            return in_free
        return replace(
            in_free,
            peak_bytes=all_checkpointed.peak_bytes,
            activation_bytes=all_checkpointed.activation_bytes,
            logits_bytes=all_checkpointed.logits_bytes,
            workspace_bytes=all_checkpointed.workspace_bytes,
        )


def cost_of_one_layer(steps: tuple[Step, Step]) -> Step:
    """What one more layer adds."""
    fewer, more = steps
    return more - fewer


def extrapolate(steps: tuple[Step, Step], layers: int) -> Step:
    """The step of a model with `layers` layers, from the steps with `FEW` and with one more."""
    return steps[0] + (layers - FEW) * cost_of_one_layer(steps)


def layer_costs(model: PeftModel, batch: BatchShape) -> LayerCosts | None:
    """Costs of a trainable model on the `meta` device; None if its layers differ or are too few."""
    return LayerCosts(model, batch) if layers_are_alike(model) else None


def checkpointed_step(model: PeftModel, batch: BatchShape) -> Step:
    """The step of a trainable model on the `meta` device with all its layers checkpointed."""
    if not layers_are_alike(model):
        return whole_step(model, batch, None)
    steps = pair_of_steps(model, batch, None)
    return extrapolate(steps, depth_of(model))


# One model at a time is asked about, with many micro-batches.
@lru_cache(maxsize=1)
def layers_are_alike(model: PeftModel | PreTrainedModel) -> bool:
    """Whether the costs of a few layers can be extrapolated to all."""
    return depth_of(model) > FEW + 1 and len({signature(layer) for layer in decoder_layers(model)}) == 1


def pair_of_steps(model: PeftModel, batch: BatchShape, checkpointed: int | None) -> tuple[Step, Step]:
    """Steps with `FEW` layers and with one more."""
    steps = []
    for few in (FEW, FEW + 1):
        with only_layers(model, few):
            steps.append(whole_step(model, batch, checkpointed))
    return steps[0], steps[1]


def whole_step(model: PeftModel, batch: BatchShape, checkpointed: int | None) -> Step:
    checkpoint_layers(model, checkpointed)
    return simulate(model, batch)


def signature(layer: torch.nn.Module) -> tuple[Any, ...]:
    """Distinguishes kinds of layers: names and shapes of the weights, and settings of the modules.

    Layers with equal weights may differ in their attention window (Gemma) or have no positions (SmolLM3), which
    transformers keeps in attributes of various names. Fast layers have the same costs with any window, except for the
    rotary angles, which layers of a kind share (Gemma 3: 8 MiB for 8,192 tokens).
    """
    weights = tuple((name, tuple(weights.shape)) for name, weights in layer.named_parameters())
    if architectures.block_of(layer) is not None:
        return weights, ()
    settings = tuple(
        (path, name, value)
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | None) and name not in PLACE
    )
    return weights, settings


@contextmanager
def only_layers(model: PeftModel, count: int) -> Iterator[None]:
    """Reduce the model to its first `count` layers inside the block."""
    layers = layer_list(model)
    every = layers._modules
    layers._modules = dict(list(every.items())[:count])
    try:
        yield
    finally:
        layers._modules = every


def layer_list(model: Any) -> Any:
    """The module list that contains the decoder layers."""
    first = decoder_layers(model)[0]
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and first in list(module))


def depth_of(model: Any) -> int:
    """The number of layers, including those that `planned_model.cut` removed."""
    layers = decoder_layers(model)
    return getattr(layer_list(model), DEPTH, len(layers)) if layers else 0
