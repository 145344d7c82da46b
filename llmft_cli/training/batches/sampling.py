"""The order of the training sequences: shuffled, or with sequences of similar length in a batch, for little padding.

Each sampler tells the sequences which epoch begins. accelerate does that only as long as no batches are skipped: when resuming,
it tells the sampler alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.batches.token_batches import padded_length, token_batches

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from llmft_cli.training.batches.collate import Batch


class EpochSampler:
    """What the samplers have in common: the order depends only on seed and epoch, so resuming reproduces it."""

    def __init__(self, sequences: Sequences, seed: int) -> None:
        self._sequences = sequences
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self._epoch = epoch
        self._sequences.set_epoch(epoch)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed + self._epoch)


class OrderedSampler(EpochSampler, torch.utils.data.Sampler[int]):
    """The order of the sequences themselves, whose rows are drawn anew for each epoch."""

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))


class ShuffledSampler(EpochSampler, torch.utils.data.Sampler[int]):
    """The order that Trainer's own sampler has, once accelerate has put its own in its place."""

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self), generator=self.generator()).tolist())


class LengthGroupedSampler(EpochSampler, torch.utils.data.Sampler[int]):
    """Like transformers' sampler of that name, for which resuming is another order.

    Args:
        batch_size: sequences in a step, over all its batches.
    """

    def __init__(self, sequences: Sequences, batch_size: int, seed: int) -> None:
        super().__init__(sequences, seed)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[int]:
        lengths = self._sequences.lengths.tolist()
        return iter(get_length_grouped_indices(lengths, self._batch_size, generator=self.generator()))


def sampler_of(sequences: Sequences, grouped_by: int | None, seed: int) -> torch.utils.data.Sampler[int]:
    """The order of the sequences; `grouped_by` is how many of similar length are a step, or None."""
    if sequences.passes is not None:
        return OrderedSampler(sequences, seed)
    return ShuffledSampler(sequences, seed) if grouped_by is None else LengthGroupedSampler(sequences, grouped_by, seed)


class TokenBatchSampler(EpochSampler, torch.utils.data.Sampler[list[int]]):
    """Fills batches with sequences of similar length, up to `tokens_per_batch`.

    Trainer derives its steps from the number of batches, so every epoch must have the same number. Fixed batches in a
    new order would ensure that, but would always average the same rows together. Instead, lengths are rounded
    (`token_batches.padded_length`): the rounded lengths fix the number and shapes of the batches, and each epoch draws
    which sequences of a rounded length go into which batch. Nearly all sequences of packed data have the same rounded
    length, so they are mixed as freely as in batches of a fixed size.
    """

    def __init__(self, sequences: Sequences, tokens_per_batch: int, seed: int) -> None:
        """Raises ConfigError if the longest sequence does not fit."""
        super().__init__(sequences, seed)
        lengths = sequences.lengths.tolist()
        longest = max(lengths)
        self._batches = token_batches(lengths, tokens_per_batch)
        self._padded = torch.tensor([padded_length(length, longest) for length in lengths])

    @property
    def sampler(self) -> TokenBatchSampler:
        """Itself: when resuming, accelerate wraps this sampler to skip batches and calls only its `sampler.set_epoch`."""
        return self

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        generator = self.generator()
        shuffled = torch.randperm(len(self._padded), generator=generator)
        longest_first = shuffled[torch.argsort(self._padded[shuffled], descending=True, stable=True)].tolist()
        for number in torch.randperm(len(self._batches), generator=generator).tolist():
            batch = self._batches[number]
            yield longest_first[batch.start : batch.start + batch.sequences]


def loader_of(
    sequences: Any, batches: TokenBatchSampler, collate: Any, arguments: TrainingArguments
) -> torch.utils.data.DataLoader[Batch]:
    """A loader of batches with different numbers of sequences, which Trainer's own does not support."""
    pinned = arguments.dataloader_pin_memory
    return torch.utils.data.DataLoader(sequences, batch_sampler=batches, collate_fn=collate, pin_memory=pinned)
