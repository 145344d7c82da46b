"""The loss on held-out rows, computed in the same way during training and in eval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmft_cli.training.batches.collate import collate, to_device

if TYPE_CHECKING:
    import torch

    from llmft_cli.training.batches.sequences import Sequences
    from llmft_cli.training.loop.smaller_passes import Passes

# exp of more than this overflows a float; no model has a loss of 700 nats.
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean negative log-likelihood in nats per supervised token, and the number of those tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, LARGEST_EXPONENT))


def held_out_loss(
    model: torch.nn.Module, sequences: Sequences, batch_size: int, device: torch.device, passes: Passes | None = None
) -> HeldOutLoss:
    """The mean loss over all supervised tokens of the sequences.

    Draws no random numbers, so an evaluation does not change the training. Only one batch is in memory at a time.

    Args:
        sequences: of held-out rows, at least one; they are read from disk batch by batch.
        batch_size: sequences in one forward pass.
        passes: of an earlier evaluation, with the pass size that fits into memory.

    Raises:
        DoesNotFit: a single row needs too much memory.
    """
    import torch

    from llmft_cli.training.loop.smaller_passes import Passes
    from llmft_cli.training.step.loss import summed_loss

    passes = passes or Passes(device)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    by_length = sequences.lengths.argsort(kind="stable").tolist()
    with torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            batch = to_device(collate([sequences[number] for number in by_length[start : start + batch_size]]), device)
            total += passes.run([batch], lambda part: summed_loss(model, part).double())
            tokens += len(batch["predicting"])
    model.train(was_training)
    return HeldOutLoss(total.item() / tokens, tokens)
