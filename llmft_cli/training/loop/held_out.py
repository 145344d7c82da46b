"""The loss on held-out rows, one number wherever it is asked for: during training and in eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.training.batches.collate import collate, to_device

if TYPE_CHECKING:
    import torch

    from llmft_cli.training.loop.smaller_passes import Passes

# exp of more overflows a float; a loss of 700 nats is far beyond any model.
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
    model: torch.nn.Module, sequences: Sequence[Any], batch_size: int, device: torch.device, passes: Passes | None = None
) -> HeldOutLoss:
    """Loss over all supervised tokens of the sequences, each token weighing the same.

    Draws no random numbers, so that evaluating in between leaves training as it is.

    Args:
        sequences: as `data/store.py` writes them, at least one.
        batch_size: sequences in one forward pass.
        passes: what an earlier evaluation has found out about the memory.

    Raises:
        DoesNotFit: a single row takes too much memory.
    """
    import torch

    from llmft_cli.training.loop.smaller_passes import Passes
    from llmft_cli.training.step.loss import summed_loss

    passes = passes or Passes(device)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    by_length = sorted(sequences, key=lambda sequence: len(sequence["input_ids"]))
    with torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            batch = to_device(collate(by_length[start : start + batch_size]), device)
            total += passes.run([batch], lambda part: summed_loss(model, part).double())
            tokens += len(batch["predicting"])
    model.train(was_training)
    return HeldOutLoss(total.item() / tokens, tokens)
