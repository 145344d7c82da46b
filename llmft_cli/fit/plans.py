"""The plans that are considered for a training, and what they are predicted or measured with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmft_cli.fit.host_resources import HostResources, host_resources
from llmft_cli.models import random_model
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import datasets
    from peft import PeftModel
    from transformers import PreTrainedConfig

    from llmft_cli.settings.compute_types import Abilities
    from llmft_cli.training.plan import Plan
    from llmft_cli.training.planning.options import Option
    from llmft_cli.training.planning.simulation import BatchShape
    from llmft_cli.training.planning.speed import Rates
    from llmft_cli.training.profiling.measuring import Measured

SHORTEST_LENGTH = 64


@dataclass(frozen=True)
class Plans:
    """The plans that were considered for a training.

    Attributes:
        model: on `meta`, without a plan.
        batch_of: the largest batch of a number of sequences.
        available_bytes: the GPU memory that the training may use; None without a limit.
        chosen: None if no plan fits.
    """

    model: PeftModel
    batch_of: Callable[[int], BatchShape]
    available_bytes: int | None
    options: list[Option]
    chosen: Option | None

    @property
    def best(self) -> Option:
        """The chosen plan, or the most frugal one if none fits."""
        return self.chosen or min(self.options, key=lambda option: option.required_bytes)


def consider_plans(
    config: Config,
    model: PeftModel,
    sequences: datasets.Dataset | None,
    available_bytes: int | None,
    rates: Rates | None,
) -> Plans:
    from llmft_cli.training.planning.decide import considered, longest_batches, worst_batches
    from llmft_cli.training.planning.options import choose
    from llmft_cli.training.planning.speed import REFERENCE_RATES

    batch_of = longest_batches(config) if sequences is None else worst_batches(sequences, config.tokens_per_batch)
    options, kind = considered(model, config, batch_of, available_bytes, rates or REFERENCE_RATES)
    return Plans(model, batch_of, available_bytes, options, choose(options, available_bytes, kind))


def host_resources_of(plans: Plans, config: Config, weights_here: bool) -> HostResources:
    plan = plans.best.plan
    return host_resources(
        plans.model,
        replace(config, optim=plan.optim),
        weights_here=weights_here,
        offloaded_tokens=plans.batch_of(plan.batch_size).tokens if plan.activation_offloading else 0,
    )


def trainable(
    shape: PreTrainedConfig, config: Config, device: str, plan: Plan | None = None, able: Abilities | None = None
) -> PeftModel:
    """A model of the shape with an adapter: with random weights and a plan applied, or, on `meta`, without a plan.

    Args:
        able: the abilities of the GPU that `meta` stands for; None means all.
    """
    import torch

    from llmft_cli.training.step.tuned_model import apply_plan, make_trainable

    dtype = compute_types.torch_type(config.compute_dtype)
    base = random_model.build(shape, torch.device(device), config.quantization, dtype)
    model = make_trainable(base, config, config.model, able)
    if plan is not None:
        apply_plan(model, plan)
    return model


def longest_that_fits(model: PeftModel, config: Config, available_bytes: int | None) -> int | None:
    """Halve the sequence length until the most frugal plan fits, with one sequence per batch; None if none fits.

    If batches are filled by tokens, the requested length itself is tried first.
    """
    from llmft_cli.training.planning.decide import considered, longest_batches
    from llmft_cli.training.planning.speed import REFERENCE_RATES

    single = replace(config, batch_size=1, gradient_accumulation_steps=1, tokens_per_batch=None, plan="frugal")
    length = config.max_seq_length if config.tokens_per_batch else config.max_seq_length // 2
    while length >= SHORTEST_LENGTH:
        shorter = replace(single, max_seq_length=length)
        found, _kind = considered(model, shorter, longest_batches(shorter), available_bytes, REFERENCE_RATES)
        if any(option.fits(available_bytes) for option in found):
            return length
        length //= 2
    return None


def measure_plan(shape: PreTrainedConfig, config: Config, option: Option, batch: BatchShape, device: str) -> Measured:
    from llmft_cli.training.profiling import measuring

    return measuring.measure(trainable(shape, config, device, option.plan), batch, option.plan.optim)
