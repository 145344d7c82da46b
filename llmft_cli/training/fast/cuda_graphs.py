"""Forward and backward passes captured as CUDA graphs, so that one launch runs a whole pass.

Without a graph, a pass of a small model or of few tokens waits for Python to launch thousands of kernels. A graph only
fits batches of exactly the captured shape, so batches are padded to a few sizes, here and in `collate.collate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from llmft_cli.base.errors import first_line
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.fast.architectures import blocks_of

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch

# Returns the loss of a batch divided by a number of tokens, and adds its gradients to the weights' `grad`.
Work = Callable[["Batch", torch.Tensor], torch.Tensor]

# Padded sizes: targets to eighths of the batch's positions, rows to multiples of 32.
SUPERVISED_SHARE = 8
ROWS_AT_A_TIME = 32
# Each keeps its graph and inputs on the GPU; the memory for activations is shared.
MOST_RECORDINGS = 32
TENSORS = ("input_ids", "position_ids", "predicting", "targets", "row_starts")


@dataclass
class Recording:
    """A graph, its input tensors, and the tensor of its loss."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    divisor: torch.Tensor
    loss: torch.Tensor

    def replay(self, batch: Batch, divisor: torch.Tensor) -> torch.Tensor:
        for name in TENSORS:
            self.batch[name].copy_(batch[name], non_blocking=True)
        self.divisor.copy_(divisor)
        self.graph.replay()
        return self.loss.clone()


class GraphMemory:
    """Where graphs keep what is between their operations. They share it, so no two of them may run at once.

    Attributes:
        pool: torch's handle of it; None while there are no graphs.
    """

    def __init__(self) -> None:
        self.pool: Any = None


class RecordedPasses:
    """Passes of a model: the first runs directly, to compile kernels; later ones are captured once per shape and replayed.

    The least recently used recording is dropped when there are too many. If recordings are made more often than reused,
    all are dropped and recording stops: they would leave no memory for other passes.

    Attributes:
        failure: one line on why recording stopped; None while it works.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], work: Work, memory: GraphMemory | None = None) -> None:
        """`weights` are those whose gradients the work adds to."""
        self.failure: str | None = None
        self._weights = list(weights)
        self._work = work
        self._memory = memory or GraphMemory()
        self._gradients: list[torch.Tensor] = []
        self._recordings: dict[Any, Recording] = {}
        self._warm = False
        self._made = self._used_again = 0

    def beside(self, work: Work) -> RecordedPasses:
        """Recorded passes of other work, without gradients, in the same memory: they take none if they need less.

        Not even the first runs directly: its kernels must be compiled.
        """
        other = RecordedPasses([], work, self._memory)
        other._warm = True
        return other

    @property
    def has_recordings(self) -> bool:
        return bool(self._recordings)

    def run(self, batch: Batch, divisor: torch.Tensor) -> torch.Tensor:
        """The loss of a batch on the GPU; adds its gradients to the weights' `grad`."""
        if self.failure is not None:
            return self._work(batch, divisor)
        padded = padded_batch(batch)
        key = tuple((name, padded[name].shape if name in TENSORS else padded[name]) for name in sorted(padded))
        self._attach_gradients()
        if key not in self._recordings:
            if not self._warm:
                self._warm = True
                return self._work(padded, divisor)
            self._try_to_record(key, padded, divisor)
        else:
            self._used_again += 1
        if self.failure is not None:
            return self._work(batch, divisor)
        recording = self._recordings[key] = self._recordings.pop(key)  # the most recently used is last
        return recording.replay(padded, divisor)

    def release(self) -> None:
        """Free the memory of all recordings; they are captured again when needed.

        Only the weights keep the gradient tensors, so clearing `grad` frees those.
        """
        self._recordings.clear()
        self._made = self._used_again = 0
        self._gradients = []
        self._memory.pool = None
        torch.cuda.empty_cache()

    def _try_to_record(self, key: Any, batch: Batch, divisor: torch.Tensor) -> None:
        if self._made >= MOST_RECORDINGS and self._used_again < self._made:
            self.failure = f"too many batch shapes ({self._made} CUDA graphs were reused {self._used_again} times)"
            self.release()
            return
        if len(self._recordings) == MOST_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]
        try:
            self._recordings[key] = self._record(batch, divisor)
            self._made += 1
        except Exception as error:  # nothing was computed yet, and the pass can run without a graph
            # Do not keep the error: its traceback keeps the pass's tensors alive. Its __context__ is the original error.
            self.failure = first_line(error.__context__ or error)
            end_broken_capture(divisor.device, self._memory.pool)
        if self.failure is not None:
            self.release()

    def _record(self, batch: Batch, divisor: torch.Tensor) -> Recording:
        own = {name: value.clone() if name in TENSORS else value for name, value in batch.items()}
        own_divisor = divisor.clone()
        graph = torch.cuda.CUDAGraph()
        self._memory.pool = self._memory.pool or torch.cuda.graph_pool_handle()
        # The outer context restores the stream after a failed capture. "thread_local": other threads may call CUDA.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._memory.pool, capture_error_mode="thread_local"),
        ):
            loss = self._work(own, own_divisor)
        return Recording(graph, own, own_divisor, loss)

    def _attach_gradients(self) -> None:
        """Move the weights' gradients, with their values, to the tensors that the graphs add to."""
        if not self._gradients:
            self._gradients = [torch.empty_like(weights) for weights in self._weights]
        cleared = []
        for weights, gradient in zip(self._weights, self._gradients, strict=True):
            if weights.grad is None:
                cleared.append(gradient)
            elif weights.grad is not gradient:
                gradient.copy_(weights.grad)
            weights.grad = gradient
        if cleared:
            torch._foreach_zero_(cleared)


def end_broken_capture(device: torch.device, pool: Any) -> None:
    """Tell the allocator and the random generator that a failed capture has ended.

    During a capture, the allocator does not free cached memory, which smaller passes need, and the device generates no
    random numbers. The allocator of pinned memory cannot be told; it checks only during another capture.
    """
    if device.type != "cuda" or pool is None:
        return
    index = device.index or 0
    with suppress(RuntimeError):  # raised if the capture has already ended
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())


def recorded_passes(model: Any, device: torch.device, work: Work) -> RecordedPasses | None:
    """Recorded passes for a model with fast layers that is entirely on a GPU; None for others."""
    if device.type != "cuda" or not blocks_of(model) or model.get_input_embeddings().weight.device != device:
        return None
    return RecordedPasses([weights for weights in model.parameters() if weights.requires_grad], work)


def padded_batch(batch: Batch, targets: int = 0, rows: int = 0, longest_row: int = 0) -> Batch:
    """Pad targets, rows and the longest row to sizes that batches have in common, and at least to the given ones."""
    positions = batch["input_ids"].numel()
    length = batch["input_ids"].shape[1]
    missing = next_multiple(max(targets, len(batch["targets"])), -(-positions // SUPERVISED_SHARE)) - len(batch["targets"])
    missing_rows = next_multiple(max(rows, len(batch["row_starts"])), ROWS_AT_A_TIME) - len(batch["row_starts"])
    longest_row = max(longest_row, batch["longest_row"])
    alone = batch["first_rows_alone"]
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        # The last position predicts nothing, so it has no target of its own.
        "predicting": pad(batch["predicting"], (0, missing), value=positions - 1),
        "targets": pad(batch["targets"], (0, missing), value=IGNORED),
        # Empty rows.
        "row_starts": pad(batch["row_starts"], (0, missing_rows), value=positions),
        "longest_row": length if alone else min(length, 1 << (longest_row - 1).bit_length()),
        "first_rows_alone": alone,
    }


def next_multiple(count: int, step: int) -> int:
    return -(-count // step) * step
