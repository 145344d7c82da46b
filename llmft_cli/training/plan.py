"""A plan: how a training is laid out on a device."""

from __future__ import annotations

from dataclasses import dataclass

from llmft_cli.settings.config import Config


@dataclass(frozen=True)
class Plan:
    """Sequences in one pass, passes to an optimizer step, layers whose activations are computed again, and what is where.

    Attributes:
        embeddings_on_cpu: whether the input embeddings are looked up in the host's memory.
        dequantized_weights: whether 4-bit weights are kept in 16 bits besides, rather than dequantised at each use.
        activation_offloading: whether inputs of checkpointed layers wait for the backward pass in the host's memory.
    """

    batch_size: int
    gradient_accumulation_steps: int
    checkpointed_layers: int
    optim: str
    embeddings_on_cpu: bool = False
    dequantized_weights: bool = False
    activation_offloading: bool = False


def given_plan(config: Config, layers: int, checkpointing: bool) -> Plan:
    """The plan that the settings spell out."""
    return Plan(config.batch_size, config.gradient_accumulation_steps, layers if checkpointing else 0, config.optim)
