"""When memory runs out, training and evaluation repeat the batch in smaller passes."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy
import torch

from llmft_cli.base.errors import OutOfMemory, first_line, from_library_error
from llmft_cli.training.batches.collate import halves, parts_within
from llmft_cli.training.device_memory import CONTEXT_BYTES

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch
    from llmft_cli.training.batches.stored_rows import StoredRows

GIBIBYTE = 2**30
ROWS_NAMED = 4


@dataclass(frozen=True)
class MemoryUse:
    """The GPU's memory when it ran out, in bytes.

    Attributes:
        total: the limit of this process if that was reached, else the GPU's total memory.
        allocated: by tensors.
        kept: allocated by weights and optimizer, that is, still there after the failed pass was freed.
        reserved: by torch, tensors included.
        others: used by other processes and by CUDA itself.
    """

    total: int
    allocated: int
    kept: int
    reserved: int
    others: int

    def __str__(self) -> str:
        counts = (self.total, self.kept, self.allocated - self.kept, self.reserved - self.allocated, self.others)
        total, kept, passing, idle, others = (f"{count / GIBIBYTE:.2f}" for count in counts)
        return (
            f"of {total} GiB, weights and optimizer used {kept}, the pass {passing}, torch's cache {idle}, "
            f"CUDA and other processes {others}"
        )


@dataclass(frozen=True)
class Failure:
    """A part of a batch that did not fit, the library's message, and the GPU's memory (None on a CPU)."""

    part: Batch
    message: str
    memory: MemoryUse | None

    @property
    def tokens(self) -> int:
        """Number of tokens, padding included."""
        return self.part["input_ids"].numel()

    @property
    def shape(self) -> str:
        sequences, longest = self.part["input_ids"].shape
        return f"{sequences} x {longest:,} tokens"

    @property
    def reason(self) -> str:
        return str(self.memory or self.message)


class DoesNotFit(OutOfMemory):
    """Memory ran out with a single row; weights and optimizer are unchanged, gradients are cleared."""

    def __init__(self, failure: Failure) -> None:
        length = failure.part["input_ids"].shape[1]
        super().__init__(
            f"a row of {length:,} tokens does not fit: {failure.reason}", "prepare the data with a smaller --max-seq-length"
        )
        self.failure = failure


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(from_library_error(error), OutOfMemory)


@dataclass
class CurrentStep:
    """The data needed to repeat an optimizer step from its start.

    Attributes:
        done: optimizer steps before it.
        random_state: at its start.
        logged_loss: Trainer's sum of losses not yet logged, at its start.
        batches: its batches so far.
    """

    done: int
    random_state: RandomState
    logged_loss: torch.Tensor
    batches: list[Batch] = field(default_factory=list)


class Passes:
    """Runs batches through a model: whole until memory runs out, then in parts of half the failed size.

    Attributes:
        largest: maximum tokens in one pass, padding included; None while whole batches fit.
        retries: how often a smaller pass was tried after memory ran out.
    """

    def __init__(self, device: torch.device, report: Callable[[Failure, int], None] | None = None) -> None:
        """`report` is called with each failure and the new `largest`."""
        self.largest: int | None = None
        self.retries = 0
        self._device = device
        self._report = report

    def run(
        self, batches: Sequence[Batch], work: Callable[[Batch], torch.Tensor], start_over: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """The result of `work` for the last batch, summed over its parts.

        Args:
            batches: all batches of the step so far; those before the last are repeated only after a failure.
            work: returns a sum over tokens, so that the parts' results add up to the batch's.
            start_over: undoes the effects of `work` for all batches.

        Raises:
            DoesNotFit: memory ran out on a part that cannot be split.
        """
        outcome = self._attempt(batches[-1:], work)
        while isinstance(outcome, Failure):
            start_over()
            failure = release_memory(outcome, self._device)
            if not halves(failure.part):
                raise DoesNotFit(failure)
            self.largest = failure.tokens // 2
            self.retries += 1
            if self._report:
                self._report(failure, self.largest)
            outcome = self._attempt(batches, work)
        return outcome

    def _attempt(self, batches: Sequence[Batch], work: Callable[[Batch], torch.Tensor]) -> torch.Tensor | Failure:
        part = batches[-1]
        try:
            for batch in batches:
                results = []
                for part in parts_within(batch, self.largest):
                    results.append(work(part))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Returning frees the error, whose traceback keeps the tensors of the pass alive.
            return Failure(part, first_line(error), memory_use(self._device))
        return results[0] if len(results) == 1 else torch.stack(results).sum()


def memory_use(device: torch.device) -> MemoryUse | None:
    """The GPU's memory now, with all tensors counted as kept; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    others = max(0, total - free - reserved)
    limit = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    if limit - reserved < free:  # this process's limit was reached first, which other processes do not use
        total, others = limit + CONTEXT_BYTES, min(others, CONTEXT_BYTES)
    return MemoryUse(total, allocated, allocated, reserved, others)


def release_memory(failure: Failure, device: torch.device) -> Failure:
    """Free the failed pass's memory and torch's cache, to avoid fragmentation; returns the failure with `kept` set."""
    gc.collect()
    if failure.memory is None:
        return failure
    torch.cuda.synchronize(device)  # copies on other streams may still be running
    torch.cuda.empty_cache()
    return replace(failure, memory=replace(failure.memory, kept=torch.cuda.memory_allocated(device)))


def retry_notice(when: str, failure: Failure, largest: int, rows: StoredRows, advice: str) -> str:
    """One line for the user: what failed, its position in the data, what used the memory, and what happens now.

    Args:
        largest: maximum tokens in one pass from now on.
        rows: of the split that contains the failed part.
        advice: flags that avoid the failure next time.
    """
    numbers = [f"{number:,}" for number in find_rows(failure.part, rows)]
    named = ", ".join(numbers[:ROWS_NAMED]) + (" ..." if len(numbers) > ROWS_NAMED else "")
    which = "rows" if len(numbers) > 1 else "row"
    return (
        f"{when}: out of memory with {failure.shape} (beginning with {which} {named}): {failure.reason}; continuing with "
        f"at most {largest:,} tokens per pass; batch and loss stay the same (to start this way: {advice})"
    )


@dataclass(frozen=True)
class RandomState:
    """The states of all random generators that training uses."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: torch.Tensor | None


def random_state(device: torch.device) -> RandomState:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return RandomState(random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda)


def set_random_state(state: RandomState, device: torch.device) -> None:
    random.setstate(state.python)
    numpy.random.set_state(state.numpy)
    torch.set_rng_state(state.cpu)
    if state.cuda is not None:
        torch.cuda.set_rng_state(state.cuda, device)


def find_rows(part: Batch, rows: StoredRows) -> list[int]:
    """The numbers in a split, from 1, of the first row of each of a part's sequences; rows of other splits are skipped."""
    pairs = zip(part["input_ids"].tolist(), part["position_ids"].tolist(), strict=True)
    found = (rows.beginning_with(first_row(*pair)) for pair in pairs)
    return [number + 1 for number in found if number is not None]


def first_row(input_ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Token ids of a sequence's first row."""
    end = next((index for index in range(1, len(positions)) if positions[index] == 0), len(positions))
    return list(input_ids[:end])
