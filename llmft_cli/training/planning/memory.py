"""What a training will hold on the GPU, piece by piece, before anything is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llmft_cli.training.fast.architectures import blocks_of
from llmft_cli.training.planning.optimizer_state import rounded_up, state_on_card
from llmft_cli.training.planning.simulation import Step, scales, standing_tensors
from llmft_cli.training.step.cpu_embeddings import movable_embeddings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

# cuBLAS keeps 32 MiB for itself on Hopper and 8 MiB before it, once for the forward and once for the
# backward thread (torch's `CUBLAS_WORKSPACE_CONFIG`) of each stream; taken as the larger one. CUDA graphs are recorded
# on a stream of their own: 60 to 65 MiB more in most recorded trainings (benchmarks/results/memory-fast-h100.json).
CUBLAS_BYTES = 2 * 32 * 2**20


@dataclass(frozen=True)
class Breakdown:
    """Bytes on the GPU at the fullest moment of a step; together they are the predicted peak.

    Attributes:
        dequantized_weights: the 16-bit values of 4-bit weights in fast layers: all of them where they are kept, or the
            memory that they are put into at each use.
    """

    quantized_weights: int
    dequantized_weights: int
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


@dataclass(frozen=True)
class Holdings:
    """Bytes that stand on the GPU before a step of a model begins.

    Attributes:
        dense_weights: all that is neither quantised, nor trained, nor held by fast layers for dequantising.
        movable_embeddings: of them, input embeddings that can be in the host's memory.
        trained_sizes: numbers of each trained tensor.
        fast_layers: whether the model has them.
    """

    quantized_weights: int
    dequantized_weights: int
    dense_weights: int
    adapters: int
    movable_embeddings: int
    trained_sizes: tuple[int, ...]
    fast_layers: bool

    def is_recorded(self, embeddings_on_cpu: bool = False) -> bool:
        """Whether passes on a GPU are replayed as CUDA graphs, as `cuda_graphs.recorded_passes` does it.

        Those of fast layers are, but not where the processor looks up the input embeddings.
        """
        return self.fast_layers and not (embeddings_on_cpu and self.movable_embeddings)

    def cublas_bytes(self, embeddings_on_cpu: bool = False) -> int:
        """What cuBLAS keeps for itself on a GPU, on the one stream or two that passes run on."""
        return (2 if self.is_recorded(embeddings_on_cpu) else 1) * CUBLAS_BYTES


def holdings(model: PeftModel) -> Holdings:
    """Of a model on the `meta` device, with its weights kept dequantised or not, as they are."""
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    adapters = allocated(trained)
    quantized = allocated(
        tensor for weights in model.parameters() if is_quantized(weights) for tensor in (weights, *scales(weights))
    )
    dequantized = allocated(dequantized_tensors(model))
    for weights in model.parameters():
        weights.grad = None
    standing = allocated(standing_tensors(model))
    embeddings = movable_embeddings(model)
    return Holdings(
        quantized_weights=quantized,
        dequantized_weights=dequantized,
        dense_weights=standing - quantized - dequantized - adapters,
        adapters=adapters,
        movable_embeddings=0 if embeddings is None else allocated([embeddings.weight]),
        trained_sizes=tuple(weights.numel() for weights in trained),
        fast_layers=bool(blocks_of(model)),
    )


def breakdown_of(held: Holdings, step: Step, optim: str, embeddings_on_cpu: bool = False) -> Breakdown:
    """The breakdown of a step of a model that holds so much.

    Args:
        embeddings_on_cpu: leave the input embeddings out, where they can be moved.
    """
    return Breakdown(
        quantized_weights=held.quantized_weights,
        dequantized_weights=held.dequantized_weights,
        dense_weights=held.dense_weights - (held.movable_embeddings if embeddings_on_cpu else 0),
        adapters=held.adapters,
        gradients=held.adapters,
        optimizer=state_on_card(list(held.trained_sizes), optim),
        activations=step.activation_bytes,
        logits=step.logits_bytes,
        workspace=step.workspace_bytes + held.cublas_bytes(embeddings_on_cpu),
    )


def dequantized_tensors(model: PeftModel) -> Iterator[torch.Tensor]:
    """What fast layers hold of 4-bit weights in 16 bits."""
    for block in blocks_of(model):
        yield block.workspace
        yield from (linear.kept for linear in block.linears if linear.is_quantized and linear.kept is not None)


def is_quantized(weights: Any) -> bool:
    return getattr(weights, "quant_state", None) is not None or hasattr(weights, "SCB")


def allocated(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that torch allocates for the tensors, each storage once."""
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(map(rounded_up, sizes.values()))
