"""Simulates a training step on the `meta` device: what it allocates, computes and moves, without a GPU or weights.

The real training code runs on tensors that have shapes and types but no data. A dispatch mode sees every operation; it
counts the live storages, as torch's caching allocator would, and the work of a GPU.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmft_cli.base.errors import ConfigError, first_line
from llmft_cli.training.fast.architectures import blocks_of, held_tensors
from llmft_cli.training.planning.operations import ALLOCATIONS, OVERWRITING, result_of, tensors_in, traits_of
from llmft_cli.training.step.loss import summed_loss

if TYPE_CHECKING:
    from peft import PeftModel

ALLOCATION_BYTES = 512  # torch's caching allocator rounds up to multiples of this
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
# Products with fewer operations per byte are memory-bound: those of adapters. GPUs with bf16 do 160 to 270 operations in
# the time of moving a byte; wide products have about 1,000 operations per byte.
MEMORY_BOUND_FLOPS_PER_BYTE = 200
ATTENTION, ATTENTION_BACKWARD = "torch_attn::_varlen_attn", "torch_attn::_varlen_attn_backward"
# The operators of `masked.masked_attention`.
MASKED, MASKED_BACKWARD = (f"aten::_scaled_dot_product_efficient_attention{behind}" for behind in ("", "_backward"))
# FlashAttention-2 accumulates the queries' gradient in fp32, with rows padded to blocks of 128.
FLASH_BLOCK = 128
LARGEST_IN_REGISTERS = 64


@dataclass(frozen=True)
class Step:
    """One forward and backward pass. Memory excludes weights, gradients and optimizer state.

    Attributes:
        peak_bytes: the peak, which consists of:
        activation_bytes: tensors kept for the backward pass or computed in it,
        logits_bytes: tensors of the loss, and
        workspace_bytes: dequantised weights and temporary memory of kernels.
        product_flops: of matrix products.
        attention_flops: of attention.
        moved_bytes: bytes read and written by everything else, including memory-bound products.
        kernels: number of GPU kernel launches.
    """

    peak_bytes: int
    activation_bytes: int
    logits_bytes: int
    workspace_bytes: int
    product_flops: int
    attention_flops: int
    moved_bytes: int
    kernels: int

    def __add__(self, other: Step) -> Step:
        return Step(**{name: mine + getattr(other, name) for name, mine in vars(self).items()})

    def __sub__(self, other: Step) -> Step:
        return self + -1 * other

    def __rmul__(self, times: int) -> Step:
        return Step(**{name: times * mine for name, mine in vars(self).items()})


class StepCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live memory and work while it is active."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary = vocabulary
        self.alive: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.peak_bytes = self.product_flops = self.attention_flops = self.moved_bytes = self.kernels = 0
        self._storages: dict[int, tuple[str, int]] = {}

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count these tensors and their views; they must stay alive."""
        for tensor in tensors:
            self._storages[tensor.untyped_storage()._cdata] = "weights", 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and with True torch would import its compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, is_view, is_mutable = traits_of(operation)
        if is_view:  # most operations are
            result = operation(*args, **kwargs)
            if isinstance(result, torch.Tensor) and result.untyped_storage()._cdata in self._storages:
                return result
        inputs = list(tensors_in((*args, *kwargs.values())))
        if not is_view:
            result = result_of(operation, args, kwargs, inputs)
        outputs = list(tensors_in((result,)))
        new = [self._track(tensor, self._category(name, tensor)) for tensor in outputs]
        self._note_peak(workspace_bytes(name, inputs))
        if (any(new) or is_mutable) and name not in ALLOCATIONS:
            overwritten = args[0] if name in OVERWRITING else kwargs.get("out")
            read = [tensor for tensor in inputs if tensor is not overwritten]
            self._count_work(name, args, read, outputs)
        return result

    def _category(self, name: str, tensor: torch.Tensor) -> str:
        if name.startswith("bitsandbytes::"):
            return "workspace"
        return "logits" if self._vocabulary in tensor.shape[-1:] else "activations"

    def _track(self, tensor: torch.Tensor, category: str) -> bool:
        """Count the tensor's storage until it is freed; returns whether it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return False
        size = -(-storage.nbytes() // ALLOCATION_BYTES) * ALLOCATION_BYTES
        self._storages[key] = category, size
        self.alive[category] += size
        weakref.finalize(storage, self._forget, key)
        return True

    def _forget(self, key: int) -> None:
        category, size = self._storages.pop(key)
        self.alive[category] -= size

    def _note_peak(self, workspace: int) -> None:
        total = self.alive.total() + workspace
        if total > self.peak_bytes:
            self.peak_bytes = total
            self.at_peak = self.alive.copy()
            self.at_peak["workspace"] += workspace

    def _count_work(self, name: str, arguments: Any, read: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        self.kernels += 1
        moved_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *outputs))
        if name in PRODUCTS:
            *_, left, right = (item for item in arguments if isinstance(item, torch.Tensor))
            flops = 2 * prod(left.shape) * right.shape[-1]
            self.product_flops += flops
            if flops < MEMORY_BOUND_FLOPS_PER_BYTE * moved_bytes:
                self.moved_bytes += moved_bytes
        elif name in (ATTENTION, ATTENTION_BACKWARD):
            self.attention_flops += attention_flops(name, arguments)
        elif name in (MASKED, MASKED_BACKWARD):
            self.attention_flops += masked_attention_flops(name, read)
        else:
            self.moved_bytes += moved_bytes


def workspace_bytes(name: str, inputs: list[torch.Tensor]) -> int:
    """Temporary memory that a kernel allocates while it runs."""
    if name == MASKED_BACKWARD:
        return masked_workspace_bytes(*inputs[1:4])
    if name != ATTENTION_BACKWARD:
        return 0
    query, key, rows = inputs[1], inputs[2], len(inputs[6]) - 1
    tokens, heads, dim = query.shape
    sums = (tokens + FLASH_BLOCK * rows) * heads * (dim + 1) * torch.float32.itemsize
    repeated = 0 if heads == key.shape[1] else 2 * tokens * heads * dim * query.element_size()
    return sums + repeated


def masked_workspace_bytes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """fp32 accumulators of the gradients if they are 16-bit, and one fp32 value per query and head.

    From torch's sources, not measured: keys and values of up to 64 dimensions are accumulated in registers.
    """
    batch, heads, length, dim = query.shape
    sums = query.numel() if dim <= LARGEST_IN_REGISTERS else query.numel() + key.numel() + value.numel()
    in_fp32 = sums if query.element_size() < torch.float32.itemsize else 0
    return (in_fp32 + batch * heads * length) * torch.float32.itemsize


def masked_attention_flops(name: str, read: list[torch.Tensor]) -> int:
    """Full attention, because the mask saves no work: two products, and five in the backward pass."""
    backward = name == MASKED_BACKWARD
    query = read[1 if backward else 0]
    return (5 if backward else 2) * 2 * query.numel() * query.shape[2]


def attention_flops(name: str, arguments: Any) -> int:
    """Causal attention in rows of equal length: two products, and five in the backward pass."""
    backward = name == ATTENTION_BACKWARD
    query, starts, longest = (arguments[place] for place in ((1, 6, 8) if backward else (0, 3, 5)))
    _tokens, heads, dim = query.shape
    product = (len(starts) - 1) * longest**2 * heads * dim
    return product * (5 if backward else 2)


@dataclass(frozen=True)
class BatchShape:
    """A micro-batch of `sequences` sequences of `length` tokens.

    Attributes:
        supervised: number of tokens that have a target.
        rows: number of rows in all sequences.
        longest_row: in tokens.
    """

    sequences: int
    length: int
    supervised: int
    rows: int
    longest_row: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def on_meta(self) -> dict[str, Any]:
        """The batch as from `collate.collate`."""
        tokens = torch.empty(self.sequences, self.length, dtype=torch.long, device="meta")
        predicting = torch.empty(self.supervised, dtype=torch.long, device="meta")
        starts = torch.empty(self.rows + 1, dtype=torch.int32, device="meta")
        ids = {name: torch.empty_like(tokens) for name in ("input_ids", "labels", "position_ids")}
        supervised = {"predicting": predicting, "targets": torch.empty_like(predicting)}
        rows = {"row_starts": starts, "longest_row": self.longest_row, "first_rows_alone": False}
        return {**ids, **supervised, **rows}


def full_batch(sequences: int, length: int) -> BatchShape:
    """The largest possible micro-batch: one row per sequence, with all tokens but the first supervised."""
    return BatchShape(sequences, length, sequences * (length - 1), sequences, length)


class CannotBeSimulated(ConfigError):
    """A model's own code needs values (to select experts), or does not support the `meta` device."""

    def __init__(self, model_type: str, error: Exception) -> None:
        super().__init__(
            f"steps of models of type {model_type} cannot be simulated without their weights: {first_line(error)}",
            "test it with: llmft train --max-steps 1, which tries the longest batch first",
        )


def simulate(model: PeftModel, batch: BatchShape) -> Step:
    """Simulate one forward and backward pass of a trainable model on the `meta` device (`tuned_model.make_trainable`).

    Gradients are assumed to exist already, as from the second micro-batch on.

    Raises:
        CannotBeSimulated: the model's own code fails without values.
    """
    for weights in model.parameters():
        weights.grad = torch.empty_like(weights) if weights.requires_grad else None
    model.train()
    counter = StepCounter(model.config.get_text_config().vocab_size)
    counter.ignore(standing_tensors(model))
    try:
        with counter:
            (summed_loss(model, batch.on_meta()) / batch.supervised).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a model's own code raises
        if blocks_of(model):
            raise
        raise CannotBeSimulated(model.config.get_text_config().model_type, error) from error
    peak = counter.at_peak
    return Step(
        counter.peak_bytes,
        peak["activations"],
        peak["logits"],
        peak["workspace"],
        counter.product_flops,
        counter.attention_flops,
        counter.moved_bytes,
        counter.kernels,
    )


def standing_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """All tensors on the device before a step starts: weights, gradients, scales, buffers, and those of fast layers."""
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor
        yield from scales(tensor)
        if tensor.grad is not None:
            yield tensor.grad
    for module in model.modules():
        yield from held_tensors(module)


def scales(weights: torch.Tensor) -> Iterator[torch.Tensor]:
    """The quantisation state of a 4-bit weight: block scales, which may be quantised themselves."""
    state: Any = getattr(weights, "quant_state", None)
    if state is not None:
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.offset, state.state2.absmax, state.state2.code)
