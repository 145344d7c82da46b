"""What a training reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.settings.compute_types import TORCH_NAMES
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import torch

    from llmft_cli.training.planning.decide import Layout
    from llmft_cli.training.profiling.profiling import Profile


@dataclass(frozen=True)
class TrainResult:
    """What `train --json` prints; losses are nats per supervised token.

    Attributes:
        out_of_memory_retries: how often memory ran out and the same batch was done in smaller passes.
        largest_pass_tokens: most tokens in one pass in the end, padding included; None where whole batches fitted.
        rehearsal_peak_bytes: what torch held of the card at most while the longest batch went first; None without a card.
        skipped_steps: whose gradients overflowed fp16, since training began or was resumed; None in other types.
    """

    steps: int
    train_loss: float
    eval_loss: float | None
    best_step: int | None
    tokens_per_second: float | None
    peak_memory_bytes: int
    plan: dict[str, Any]
    adapter: str
    trainable_parameters: int
    seconds: float
    out_of_memory_retries: int
    largest_pass_tokens: int | None
    rehearsal_peak_bytes: int | None
    skipped_steps: int | None = None
    profile: Profile | None = None


def describe(config: Config, device: torch.device, layout: Layout) -> dict[str, Any]:
    """How the training ran, and what was predicted of it, for the result and the ledger."""
    predicted = layout.option
    return {
        "device": str(device),
        "quantization": config.quantization,
        "compute_dtype": TORCH_NAMES[config.compute_dtype],
        "batch_size": config.batch_size,
        "tokens_per_batch": config.tokens_per_batch,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_seq_length": config.max_seq_length,
        "packing": config.packing,
        "gradient_checkpointing": layout.plan.checkpointed_layers > 0,
        "checkpointed_layers": layout.plan.checkpointed_layers,
        "optim": config.optim,
        "embeddings_on_cpu": layout.plan.embeddings_on_cpu,
        "dequantized_weights": layout.plan.dequantized_weights,
        "activation_offloading": layout.plan.activation_offloading,
        "predicted_peak_bytes": predicted and predicted.breakdown.total,
        "required_bytes": predicted and predicted.required_bytes,
    }
