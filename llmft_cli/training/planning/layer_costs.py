"""Steps of a deep model reckoned from steps of its first layers, where all layers are alike.

What a step holds and does grows by the same amount with every further layer, with one amount for
layers that are checkpointed and one for those that are not. Two small models of each kind give
both, in a tenth of the time that the whole model takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.training.fast import architectures
from llmft_cli.training.planning.simulation import BatchShape, Step, simulate
from llmft_cli.training.step.checkpointing import checkpoint_layers

if TYPE_CHECKING:
    from peft import PeftModel

FEW = 3  # the first and the last layer are unlike the others: no gradient goes on, and the first gradient is copied
# What differs between layers of the same make.
PLACE = ("layer_idx", "gradient_checkpointing", "training")


@dataclass(frozen=True)
class LayerCosts:
    """Steps of the model with few layers, and how many it has.

    Attributes:
        free, checkpointed: with `FEW` layers and with one more, none of them checkpointed and all of them.
        mixed: with `FEW` layers that are not checkpointed after one that is.
    """

    layers: int
    free: tuple[Step, Step]
    checkpointed: tuple[Step, Step]
    mixed: Step

    def step(self, checkpointed_layers: int) -> Step:
        """The step of the whole model with its first `checkpointed_layers` layers checkpointed."""
        all_checkpointed = deepened(self.checkpointed, checkpointed_layers)
        free = self.layers - checkpointed_layers
        if free == 0:
            return all_checkpointed
        if checkpointed_layers == 0:
            return deepened(self.free, free)
        # The backward pass goes through the free layers first, with everything kept, then through the others.
        more_free = (free - FEW) * one_layer(self.free)
        in_free = self.mixed + more_free + (checkpointed_layers - 1) * one_layer(self.checkpointed)
        if checkpointed_layers <= FEW or in_free.peak_bytes >= all_checkpointed.peak_bytes:
            return in_free
        return replace(
            in_free,
            peak_bytes=all_checkpointed.peak_bytes,
            activation_bytes=all_checkpointed.activation_bytes,
            logits_bytes=all_checkpointed.logits_bytes,
            workspace_bytes=all_checkpointed.workspace_bytes,
        )


def one_layer(steps: tuple[Step, Step]) -> Step:
    """What one layer more holds and does."""
    fewer, more = steps
    return more - fewer


def deepened(steps: tuple[Step, Step], layers: int) -> Step:
    """The step of a model with `layers` layers, from the steps with `FEW` and with one more."""
    return steps[0] + (layers - FEW) * one_layer(steps)


def layer_costs(model: PeftModel, batch: BatchShape) -> LayerCosts | None:
    """Costs of a trainable model on the `meta` device; None where its layers differ, or are too few to tell."""
    if not layers_are_alike(model):
        return None
    free, checkpointed = pair_of_steps(model, batch, 0), pair_of_steps(model, batch, None)
    with only_layers(model, 1 + FEW):
        mixed = whole_step(model, batch, 1)
    return LayerCosts(len(decoder_layers(model)), free, checkpointed, mixed)


def checkpointed_step(model: PeftModel, batch: BatchShape) -> Step:
    """The step of a trainable model on the `meta` device with all its layers checkpointed."""
    if not layers_are_alike(model):
        return whole_step(model, batch, None)
    steps = pair_of_steps(model, batch, None)
    return deepened(steps, len(decoder_layers(model)))


def layers_are_alike(model: PeftModel) -> bool:
    """Whether steps of a few layers tell those of all."""
    layers = decoder_layers(model)
    return len(layers) > FEW + 1 and len({signature(layer) for layer in layers}) == 1


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
    """What tells layers of different make apart: their weights' names and shapes, and the settings of their modules.

    Of layers with the same weights some attend within a window and others to everything (Gemma), or go without
    positions (SmolLM3); transformers keeps that in attributes of many names. Fast layers hold and launch the same in any
    window, but for the angles that layers of a kind share and others do not use (Gemma 3: 8 MiB for 8,192 tokens).
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
    """The model with its first `count` layers alone."""
    first = decoder_layers(model)[0]
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and first in list(module))
    layers = next(lists)
    every = layers._modules
    layers._modules = dict(list(every.items())[:count])
    try:
        yield
    finally:
        layers._modules = every
