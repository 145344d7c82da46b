"""The loss on held-out rows, computed in the same way during training and in eval, and during training as fast as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmft_cli.base.reporter import Reporter
from llmft_cli.training.batches.collate import collate, to_device

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    from llmft_cli.training.batches.collate import Batch
    from llmft_cli.training.batches.sequences import Sequences
    from llmft_cli.training.fast.cuda_graphs import RecordedPasses
    from llmft_cli.training.loop.smaller_passes import Failure, Passes

# exp of more than this overflows a float; no model has a loss of 700 nats.
LARGEST_EXPONENT = 700.0
# `row_starts` of a batch has these besides its rows: a sequence's padding, and the end.
PADDING, END = 1, 1


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean negative log-likelihood in nats per supervised token, and the number of those tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, LARGEST_EXPONENT))


def held_out_loss(
    model: torch.nn.Module,
    sequences: Sequences,
    batch_size: int,
    device: torch.device,
    passes: Passes | None = None,
    loss_of: Callable[[Batch], torch.Tensor] | None = None,
    longest_of_all: int | None = None,
) -> HeldOutLoss:
    """The mean loss over all supervised tokens of the sequences.

    Draws no random numbers, so an evaluation does not change the training. Only one batch is in memory at a time.

    Args:
        sequences: of held-out rows, at least one; they are read from disk batch by batch.
        batch_size: sequences in one forward pass.
        passes: of an earlier evaluation, with the pass size that fits into memory.
        loss_of: the summed loss of a batch on the device, instead of `loss.summed_loss`.
        longest_of_all: see `collate.collate`.

    Raises:
        DoesNotFit: a single row needs too much memory.
    """
    import torch

    from llmft_cli.training.loop.smaller_passes import Passes
    from llmft_cli.training.step.loss import summed_loss

    passes = passes or Passes(device)
    loss_of = loss_of or partial(summed_loss, model)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    by_length = sequences.lengths.argsort(kind="stable").tolist()
    with torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            numbers = by_length[start : start + batch_size]
            batch = to_device(collate([sequences[number] for number in numbers], longest_of_all), device)
            total += passes.run([batch], lambda part: loss_of(part).double())
            tokens += len(batch["predicting"])
    model.train(was_training)
    return HeldOutLoss(total.item() / tokens, tokens)


class Evaluation:
    """Evaluates held-out rows: a few rows at once, or, where training passes are recorded, packed and recorded, too.

    Packed batches have the shape of a training pass, and a forward pass needs less memory than training's. So recorded
    evaluations find room in the memory of training's recordings, which stay. Kernels must be compiled before, in an
    evaluation that runs directly: it needs memory of its own, so recordings are forgotten for it.

    Attributes:
        passes: with the pass size that fits into memory.
    """

    def __init__(
        self,
        model: Any,
        held_out: Sequences,
        device: torch.device,
        batch_size: int,
        reporter: Reporter,
        recorded: RecordedPasses | None = None,
        capacity: int | None = None,
    ) -> None:
        """An evaluation of these held-out rows.

        Args:
            batch_size: rows at once; if they are packed, sequences.
            recorded: the training passes, if they are recorded; rows are then packed.
            capacity: tokens of a packed sequence.
        """
        from llmft_cli.training.loop.smaller_passes import Passes

        self.passes = Passes(device, self._report)
        self._held_out = held_out
        self._device = device
        self._reporter = reporter
        self._model = model
        self._recorded_training = recorded
        self._recorded = recorded and recorded.beside(partial(divided_loss, model))
        self._compiled = False
        self._sequences = held_out if capacity is None else held_out.packed_anew(capacity)
        self._batch_size = batch_size
        self._longest = None if capacity is None else int(self._sequences.lengths.max())

    @property
    def is_recorded(self) -> bool:
        """Whether the next evaluation is recorded or replayed, so that the recordings of training can stay."""
        training, own = self._recorded_training, self._recorded
        return training is not None and training.has_recordings and own is not None and own.failure is None and self._compiled

    def run(self) -> HeldOutLoss:
        """See `held_out.held_out_loss`."""
        loss_of = self._replayed if self.is_recorded else None
        sequences, size = self._sequences, self._batch_size
        found = held_out_loss(self._model, sequences, size, self._device, self.passes, loss_of, self._longest)
        self._compiled = True
        return found

    def _replayed(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch by a recording; batches are padded so that few are needed."""
        import torch

        from llmft_cli.training.fast.cuda_graphs import padded_batch

        assert self._recorded is not None
        figures, count = self._sequences.figures, batch["input_ids"].shape[0]
        targets = count * int(figures.supervised.max())
        edges = count * (int(self._sequences.row_counts.max()) + PADDING) + END
        padded = padded_batch(batch, targets, edges, int(figures.longest_row.max()))
        return self._recorded.run(padded, torch.ones((), device=self._device))

    def _report(self, failure: Failure, largest: int) -> None:
        from llmft_cli.training.loop.smaller_passes import retry_notice

        rows = max(1, largest // failure.part["input_ids"].shape[1])
        advice = f"--eval-batch-size {rows}" if self._recorded is None else "more --gradient-accumulation-steps"
        self._reporter.warn(retry_notice("evaluating", failure, largest, self._held_out.rows, advice))

    def forget_recordings(self) -> None:
        if self._recorded is not None:
            self._recorded.release()


def evaluation_of(
    trainer: Trainer, tokens_per_batch: int | None, recorded: RecordedPasses | None, reporter: Reporter
) -> Evaluation | None:
    """The evaluation of a trainer's held-out rows, or None without any; `recorded` are its training passes."""
    held_out, arguments = trainer.eval_dataset, trainer.args
    if held_out is None:
        return None
    if recorded is None:
        return Evaluation(trainer.model, held_out, arguments.device, arguments.per_device_eval_batch_size, reporter)
    longest = int(trainer.train_dataset.lengths.max())
    sequences = arguments.per_device_train_batch_size if tokens_per_batch is None else max(1, tokens_per_batch // longest)
    return Evaluation(trainer.model, held_out, arguments.device, sequences, reporter, recorded, longest)


def divided_loss(model: Any, batch: Batch, divisor: torch.Tensor) -> torch.Tensor:
    """The loss of a batch divided by `divisor`, as recorded passes compute it."""
    from llmft_cli.training.step.loss import summed_loss

    return summed_loss(model, batch) / divisor
