"""The steps of a training by how many layers are checkpointed, and whether 4-bit weights are kept dequantised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Protocol

from llmft_cli.training.fast import architectures
from llmft_cli.training.layer_costs import LayerCosts, layer_costs
from llmft_cli.training.simulation import BatchShape, Step, full_batch, simulate
from llmft_cli.training.tuned_model import checkpoint_layers

if TYPE_CHECKING:
    from peft import PeftModel


def can_keep_dequantized(model: PeftModel) -> bool:
    """Whether a model has fast layers over 4-bit weights."""
    return any(linear.is_quantized for block in architectures.blocks_of(model) for linear in block.linears)


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


class StepOf(Protocol):
    """The step with so many checkpointed layers, and weights dequantised at each use or kept so."""

    def __call__(self, checkpointed: int, dequantized_weights: bool = False) -> Step: ...


def steps(model: PeftModel, batch: BatchShape) -> StepOf:
    """Steps of this micro-batch. Where weights are kept, a step does less and holds the same beside them."""
    dequantizing_step = steps_as_it_is(model, batch)

    def step(checkpointed: int, dequantized_weights: bool = False) -> Step:
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

    @cache
    def whole(checkpointed: int) -> Step:
        checkpoint_layers(model, checkpointed)
        return simulate(model, batch)

    return whole
