"""Predicted GPU memory of a training run, by component."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llmft_cli.training.fast.architectures import blocks_of
from llmft_cli.training.planning.optimizer_state import rounded_up, state_on_gpu
from llmft_cli.training.planning.simulation import Step, scales, standing_tensors
from llmft_cli.training.step.cpu_embeddings import movable_embeddings

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

# cuBLAS's workspace (torch's `CUBLAS_WORKSPACE_CONFIG`): 32 MiB on Hopper, 8 MiB on older GPUs, for each stream once in
# the forward and once in the backward thread; the larger size is assumed. CUDA graphs are captured on a separate stream:
# 60 to 65 MiB more in most training runs with graphs (benchmarks/results/memory-fast-h100.json).
CUBLAS_BYTES = 2 * 32 * 2**20


@dataclass(frozen=True)
class Breakdown:
    """Bytes on the GPU at the peak of a step; their sum is the predicted peak.

    Attributes:
        dequantized_weights: 16-bit values of 4-bit weights in fast layers: all of them if they are kept, else the
            buffer for dequantising at each use.
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
    """Bytes on the GPU before a step starts.

    Attributes:
        dense_weights: everything that is not quantised, not trained and not a dequantised copy.
        movable_embeddings: the part of `dense_weights` that is input embeddings which can stay in host memory.
        trained_sizes: the number of values of each trained tensor.
        fast_layers: whether the model has fast layers.
    """

    quantized_weights: int
    dequantized_weights: int
    dense_weights: int
    adapters: int
    movable_embeddings: int
    trained_sizes: tuple[int, ...]
    fast_layers: bool

    def is_recorded(self, embeddings_on_cpu: bool = False) -> bool:
        """Whether passes on a GPU are replayed as CUDA graphs, as decided by `cuda_graphs.recorded_passes`.

        This needs fast layers, and input embeddings on the GPU.
        """
        return self.fast_layers and not (embeddings_on_cpu and self.movable_embeddings)

    def cublas_bytes(self, embeddings_on_cpu: bool = False) -> int:
        """cuBLAS's workspaces on the one or two streams that passes use."""
        return (2 if self.is_recorded(embeddings_on_cpu) else 1) * CUBLAS_BYTES


def holdings(model: PeftModel) -> Holdings:
    """The holdings of a model on the `meta` device, in its current state (weights kept dequantised or not)."""
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
    """The breakdown of a step.

    Args:
        embeddings_on_cpu: exclude the input embeddings if they can be moved.
    """
    return Breakdown(
        quantized_weights=held.quantized_weights,
        dequantized_weights=held.dequantized_weights,
        dense_weights=held.dense_weights - (held.movable_embeddings if embeddings_on_cpu else 0),
        adapters=held.adapters,
        gradients=held.adapters,
        optimizer=state_on_gpu(list(held.trained_sizes), optim),
        activations=step.activation_bytes,
        logits=step.logits_bytes,
        workspace=step.workspace_bytes + held.cublas_bytes(embeddings_on_cpu),
    )


def dequantized_tensors(model: PeftModel) -> Iterator[torch.Tensor]:
    """The 16-bit copies of 4-bit weights in fast layers."""
    for block in blocks_of(model):
        yield block.workspace
        yield from (linear.kept for linear in block.linears if linear.is_quantized and linear.kept is not None)


def is_quantized(weights: Any) -> bool:
    return getattr(weights, "quant_state", None) is not None or hasattr(weights, "SCB")


def allocated(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that torch allocates for the tensors, counting each storage once."""
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(map(rounded_up, sizes.values()))
