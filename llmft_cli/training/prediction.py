"""What a training will hold on the GPU, piece by piece, before anything is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llmft_cli.training.simulation import ALLOCATION_BYTES, Step, scales, standing_tensors
from llmft_cli.training.tuned_model import movable_embeddings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

# Bytes of state per trained value, by transformers' names; 8-bit ones add a scale per 256 values.
STATE_BYTES = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_8bit": 2 * (1 + 4 / 256),
    "adamw_bnb_8bit": 2 * (1 + 4 / 256),
    "lion_32bit": 4,
    "lion_8bit": 1 + 4 / 256,
    "sgd": 0,
    # Unified memory, which gives way to the host's when the card is full; torch does not count it.
    "paged_adamw_8bit": 0,
    "paged_adamw_32bit": 0,
    "paged_lion_32bit": 0,
    "paged_lion_8bit": 0,
}
LARGEST_KNOWN_STATE_BYTES = 8
# cuBLAS keeps 32 MiB for itself on Hopper and 8 MiB before it, once for the forward and once for the
# backward thread (torch's `CUBLAS_WORKSPACE_CONFIG`); taken as the larger one.
CUBLAS_BYTES = 2 * 32 * 2**20


@dataclass(frozen=True)
class Breakdown:
    """Bytes on the GPU at the fullest moment of a step; together they are the predicted peak."""

    quantized_weights: int
    dense_weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def assemble(model: PeftModel, step: Step, optim: str, embeddings_on_cpu: bool = False) -> Breakdown:
    """The breakdown of a step of a model on the `meta` device.

    Args:
        embeddings_on_cpu: leave the input embeddings out, where they can be moved.
    """
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    adapters = allocated(trained)
    quantized = allocated(
        tensor for weights in model.parameters() if is_quantized(weights) for tensor in (weights, *scales(weights))
    )
    for weights in model.parameters():
        weights.grad = None
    standing = allocated(standing_tensors(model))
    embeddings = movable_embeddings(model) if embeddings_on_cpu else None
    elsewhere = 0 if embeddings is None else allocated([embeddings.weight])
    state = STATE_BYTES.get(optim, LARGEST_KNOWN_STATE_BYTES)
    return Breakdown(
        quantized_weights=quantized,
        dense_weights=standing - quantized - adapters - elsewhere,
        adapters=adapters,
        gradients=adapters,
        optimizer=int(sum(weights.numel() for weights in trained) * state),
        activations=step.activation_bytes,
        logits=step.logits_bytes,
        workspace=step.workspace_bytes + CUBLAS_BYTES,
    )


def is_quantized(weights: Any) -> bool:
    return getattr(weights, "quant_state", None) is not None or hasattr(weights, "SCB")


def allocated(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that torch allocates for the tensors, each storage once."""
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(-(-size // ALLOCATION_BYTES) * ALLOCATION_BYTES for size in sizes.values())
