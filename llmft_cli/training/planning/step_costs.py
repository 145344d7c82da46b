"""The steps of a training by how many layers are checkpointed, and whether 4-bit weights are kept dequantised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Protocol

from llmft_cli.training.fast import architectures
from llmft_cli.training.planning.layer_costs import LayerCosts, checkpointed_step, layer_costs, whole_step
from llmft_cli.training.planning.memory import Holdings, holdings
from llmft_cli.training.planning.simulation import BatchShape, Step, full_batch

if TYPE_CHECKING:
    from peft import PeftModel


def can_keep_dequantized(model: PeftModel) -> bool:
    """Whether a model has fast layers over 4-bit weights."""
    return any(linear.is_quantized for block in architectures.blocks_of(model) for linear in block.linears)


# One model at a time is asked about, with many micro-batches.
@lru_cache(maxsize=2)
def holdings_of(model: PeftModel, dequantized_weights: bool) -> Holdings:
    """What stands on the GPU before a step begins, with 4-bit weights kept dequantised, or not."""
    with weights_kept(model, dequantized_weights):
        return holdings(model)


@contextmanager
def weights_kept(model: PeftModel, whether: bool) -> Iterator[None]:
    """The model with its 4-bit weights kept dequantised, or as it is."""
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
    """The model with what checkpointed layers keep in the host's memory."""
    architectures.offload_activations(model, True)
    try:
        yield
    finally:
        architectures.offload_activations(model, False)


class StepOf(Protocol):
    """The step with so many checkpointed layers, weights kept dequantised, and activations offloaded, or not.

    Activations are offloaded where all layers are checkpointed and weights are dequantised at each use.
    """

    def __call__(self, checkpointed: int, dequantized_weights: bool = False, activation_offloading: bool = False) -> Step: ...


def steps(model: PeftModel, batch: BatchShape) -> StepOf:
    """Steps of this micro-batch. Where weights are kept, a step does less and holds the same beside them."""
    dequantizing_step = steps_as_it_is(model, batch)

    @cache
    def offloading_step() -> Step:
        with activations_offloaded(model):
            return checkpointed_step(model, batch)

    def step(checkpointed: int, dequantized_weights: bool = False, activation_offloading: bool = False) -> Step:
        if activation_offloading:
            return offloading_step()
        found = dequantizing_step(checkpointed)
        if not dequantized_weights:
            return found
        moved_bytes, kernels = dequantizing(model)(checkpointed)
        return replace(found, moved_bytes=found.moved_bytes - moved_bytes, kernels=found.kernels - kernels)

    return step


# One model at a time is asked about, with many micro-batches.
@lru_cache(maxsize=1)
def dequantizing(model: PeftModel) -> Callable[[int], tuple[int, int]]:
    """Bytes moved and kernels launched to dequantise weights in a step with so many checkpointed layers, of any size."""
    batch = full_batch(1, 64)
    at_each_use = steps_as_it_is(model, batch)
    with weights_kept(model, True):
        kept = steps_as_it_is(model, batch)

    def saved(checkpointed: int) -> tuple[int, int]:
        more = at_each_use(checkpointed)
        with weights_kept(model, True):
            less = kept(checkpointed)
        return more.moved_bytes - less.moved_bytes, more.kernels - less.kernels

    return saved


def steps_as_it_is(model: PeftModel, batch: BatchShape) -> Callable[[int], Step]:
    """The step with so many checkpointed layers, and weights as the model has them."""
    costs: LayerCosts | None = layer_costs(model, batch)
    if costs is not None:
        return costs.step

    return cache(lambda checkpointed: whole_step(model, batch, checkpointed))
