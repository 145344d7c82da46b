"""Costs of a training step by number of checkpointed layers, and with or without keeping 4-bit weights dequantised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property, lru_cache, partial
from typing import TYPE_CHECKING

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.training.fast import architectures
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.layer_costs import (
    FEW,
    LayerCosts,
    checkpointed_step,
    depth_of,
    layer_costs,
    only_layers,
    whole_step,
)
from llmft_cli.training.planning.memory import Holdings, holdings
from llmft_cli.training.planning.simulation import BatchShape, Step

if TYPE_CHECKING:
    from peft import PeftModel


def can_keep_dequantized(model: PeftModel) -> bool:
    """Whether a model has fast layers over 4-bit weights."""
    return any(linear.is_quantized for block in architectures.blocks_of(model) for linear in block.linears)


# One model at a time is asked about, with many micro-batches.
@lru_cache(maxsize=2)
def holdings_of(model: PeftModel, dequantized_weights: bool) -> Holdings:
    """The memory used before a step starts, with 4-bit weights kept dequantised or not."""
    with weights_kept(model, dequantized_weights):
        return whole_holdings(model)


def whole_holdings(model: PeftModel) -> Holdings:
    """The holdings of all layers; each of those that the model was cut by (`planned_model.cut`) has the same as the others."""
    every, missing = holdings(model), depth_of(model) - len(decoder_layers(model))
    if missing == 0:
        return every
    with only_layers(model, FEW):
        fewer = holdings(model)
    sizes = Counter(every.trained_sizes) - Counter(fewer.trained_sizes)
    return replace(
        every,
        quantized_weights=every.quantized_weights + missing * (every.quantized_weights - fewer.quantized_weights),
        dequantized_weights=every.dequantized_weights + missing * (every.dequantized_weights - fewer.dequantized_weights),
        dense_weights=every.dense_weights + missing * (every.dense_weights - fewer.dense_weights),
        adapters=every.adapters + missing * (every.adapters - fewer.adapters),
        trained_sizes=(*every.trained_sizes, *missing * list(sizes.elements())),
    )


@contextmanager
def weights_kept(model: PeftModel, whether: bool) -> Iterator[None]:
    """Keep the model's 4-bit weights dequantised inside the block, if `whether`."""
    if not whether:
        yield
        return
    architectures.keep_dequantized(model, True)
    try:
        yield
    finally:
        architectures.keep_dequantized(model, False)


@contextmanager
def activations_offloaded(model: PeftModel) -> Iterator[None]:
    """Offload the inputs of the model's checkpointed layers to the host inside the block."""
    architectures.offload_activations(model, True)
    try:
        yield
    finally:
        architectures.offload_activations(model, False)


class StepCosts:
    """Steps of one micro-batch by plan, for a trainable model on the `meta` device; each is simulated once."""

    def __init__(self, model: PeftModel, batch: BatchShape) -> None:
        self._model, self.batch = model, batch
        self._by_layers: LayerCosts | None = layer_costs(model, batch)
        self._of_whole_model = cache(partial(whole_step, model, batch))

    def step(self, plan: Plan) -> Step:
        """The step with a plan. Keeping 4-bit weights dequantised saves work; the step's own memory stays the same."""
        if plan.activation_offloading:
            return self._offloading
        found = self.as_it_is(plan.checkpointed_layers)
        if not plan.dequantized_weights:
            return found
        saved = dequantizing_costs(self._model).saved(plan.checkpointed_layers, self)
        return replace(found, moved_bytes=found.moved_bytes - saved.moved_bytes, kernels=found.kernels - saved.kernels)

    def as_it_is(self, checkpointed_layers: int) -> Step:
        """The step with this many checkpointed layers, and weights in their current state."""
        return self._by_layers.step(checkpointed_layers) if self._by_layers else self._of_whole_model(checkpointed_layers)

    @cached_property
    def _offloading(self) -> Step:
        """With every layer checkpointed and weights dequantised at each use."""
        with activations_offloaded(self._model):
            return checkpointed_step(self._model, self.batch)


class DequantizingCosts:
    """The costs of dequantising the weights at each use; they do not depend on the batch, so those of the first one will do."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._first: tuple[StepCosts, StepCosts] | None = None

    def saved(self, checkpointed_layers: int, costs: StepCosts) -> Step:
        """What keeping the weights saves in a step.

        Args:
            costs: of any batch of the model, with weights dequantised at each use.
        """
        if self._first is None:
            with weights_kept(self._model, True):
                self._first = costs, StepCosts(self._model, costs.batch)
        at_each_use, kept = self._first
        dequantizing = at_each_use.as_it_is(checkpointed_layers)
        with weights_kept(self._model, True):
            return dequantizing - kept.as_it_is(checkpointed_layers)


# One model at a time is asked about, with many micro-batches.
@lru_cache(maxsize=1)
def dequantizing_costs(model: PeftModel) -> DequantizingCosts:
    return DequantizingCosts(model)
