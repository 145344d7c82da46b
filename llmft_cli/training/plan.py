"""A plan: how a training run uses the memory of a device."""

from __future__ import annotations

from dataclasses import dataclass

from llmft_cli.settings.config import Config

PLAN_KINDS = ("fast", "balanced", "frugal")


@dataclass(frozen=True)
class Plan:
    """How much goes through the model at once, what is recomputed, and what is kept where.

    Attributes:
        batch_size: sequences in one forward and backward pass; rows, packed into one sequence, if a step counts rows.
        gradient_accumulation_steps: passes per optimizer step.
        checkpointed_layers: how many layers, the first ones, keep only their input and recompute the rest.
        optim: the optimizer, as transformers names it.
        embeddings_on_cpu: whether the input embeddings stay in CPU memory.
        dequantized_weights: whether 4-bit weights are also kept in 16 bits, instead of being dequantised at each use.
        activation_offloading: whether the inputs of checkpointed layers wait for the backward pass in CPU memory.
    """

    batch_size: int
    gradient_accumulation_steps: int
    checkpointed_layers: int
    optim: str
    embeddings_on_cpu: bool = False
    dequantized_weights: bool = False
    activation_offloading: bool = False


def given_plan(config: Config, layers: int, checkpointing: bool) -> Plan:
    """The plan that the settings spell out, with every layer checkpointed or none."""
    return Plan(config.batch_size, config.gradient_accumulation_steps, layers if checkpointing else 0, config.optim)
