"""Forward and backward passes recorded as CUDA graphs, so that the processor launches them all at once.

A pass of a small model, or of few tokens, waits for Python to launch thousands of kernels. A recorded
one is launched as a whole, but only for batches of the very shape that was recorded: so what varies
between batches is padded to a few sizes, here and where they are made (`collate.collate`).
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

# Loss and its gradients of a batch divided by a number of tokens, left in the weights' `grad`.
Work = Callable[["Batch", torch.Tensor], torch.Tensor]

# Sizes that are recorded: eighths of the batch's positions for those that have a target, and so many rows.
SUPERVISED_SHARE = 8
ROWS_AT_A_TIME = 32
# Each holds its graph and inputs on the card, besides the memory for activations that all share.
MOST_RECORDINGS = 32
TENSORS = ("input_ids", "position_ids", "predicting", "targets", "row_starts")


@dataclass
class Recording:
    """A graph, the tensors that it reads, and the one that it writes its loss to."""

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


class RecordedPasses:
    """Passes of a model: the first as it is, to have kernels compiled, each further one recorded where its shape is new.

    Of too many recordings the one that was not used for longest is let go. Where they are made more often than used again,
    all are: beside them there is no memory for other passes.

    Attributes:
        failure: why nothing is recorded any more, in a line; None while it works.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], work: Work) -> None:
        """`weights` are those that gradients are accumulated for."""
        self.failure: str | None = None
        self._weights = list(weights)
        self._work = work
        self._gradients: list[torch.Tensor] = []
        self._recordings: dict[Any, Recording] = {}
        self._pool: Any = None
        self._warm = False
        self._made = self._used_again = 0

    def run(self, batch: Batch, divisor: torch.Tensor) -> torch.Tensor:
        """The loss of a batch on the GPU; gradients are added to those of the weights."""
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
        recording = self._recordings[key] = self._recordings.pop(key)  # the last one is that used last
        return recording.replay(padded, divisor)

    def release(self) -> None:
        """Give the memory of all recordings back; they are made anew when they are needed.

        The gradients that they add to stay with the weights, and only there: whoever clears those there frees them.
        """
        self._recordings.clear()
        self._made = self._used_again = 0
        self._gradients = []
        self._pool = None
        torch.cuda.empty_cache()

    def _try_to_record(self, key: Any, batch: Batch, divisor: torch.Tensor) -> None:
        if self._made >= MOST_RECORDINGS and self._used_again < self._made:
            self.failure = f"batches come in too many shapes ({self._made} recordings were used {self._used_again} times again)"
            self.release()
            return
        if len(self._recordings) == MOST_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]
        try:
            self._recordings[key] = self._record(batch, divisor)
            self._made += 1
        except Exception as error:  # nothing was computed yet, and everything can be computed without a graph
            # Not the error itself, whose traceback holds the tensors of the pass. The first one is behind what it led to.
            self.failure = first_line(error.__context__ or error)
            end_broken_capture(self._weights[0].device, self._pool)
        if self.failure is not None:
            self.release()

    def _record(self, batch: Batch, divisor: torch.Tensor) -> Recording:
        own = {name: value.clone() if name in TENSORS else value for name, value in batch.items()}
        own_divisor = divisor.clone()
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # `torch.cuda.graph` leaves its own stream the current one where a capture breaks off. Other threads may call CUDA.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            loss = self._work(own, own_divisor)
        return Recording(graph, own, own_divisor, loss)

    def _attach_gradients(self) -> None:
        """Have gradients in the tensors that recordings add to, with the values that they have now."""
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
    """Tell allocator and random generator that a capture which broke off goes on no more.

    While one goes on, the allocator gives no cached memory back, which those need who go on in smaller passes, and no random
    number is drawn on the device. That of pinned memory cannot be told; it asks only while something else is recorded.
    """
    if device.type != "cuda" or pool is None:
        return
    index = device.index or 0
    with suppress(RuntimeError):  # the allocator was told if the capture itself was ended
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())


def recorded_passes(model: Any, device: torch.device, work: Work) -> RecordedPasses | None:
    """Recorded passes of a model whose step is nothing but launches: one with fast layers that is on a GPU as a whole."""
    if device.type != "cuda" or not blocks_of(model) or model.get_input_embeddings().weight.device != device:
        return None
    return RecordedPasses([weights for weights in model.parameters() if weights.requires_grad], work)


def padded_batch(batch: Batch) -> Batch:
    """The batch with room for more targets, rows and longer ones, of sizes that other batches have, too."""
    positions = batch["input_ids"].numel()
    length = batch["input_ids"].shape[1]
    missing = rounded_up(len(batch["targets"]), -(-positions // SUPERVISED_SHARE)) - len(batch["targets"])
    rows = rounded_up(len(batch["row_starts"]), ROWS_AT_A_TIME) - len(batch["row_starts"])
    alone = batch["first_rows_alone"]
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        # Nothing follows the last position, so it has no target of its own.
        "predicting": pad(batch["predicting"], (0, missing), value=positions - 1),
        "targets": pad(batch["targets"], (0, missing), value=IGNORED),
        # Rows without tokens.
        "row_starts": pad(batch["row_starts"], (0, rows), value=positions),
        "longest_row": length if alone else min(length, 1 << (batch["longest_row"] - 1).bit_length()),
        "first_rows_alone": alone,
    }


def rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step
