"""Samplers that put sequences of similar length into a batch, so that there is little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from llmft_cli.training.batches.token_batches import padded_length, token_batches


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Like transformers' sampler of that name, but the order depends only on seed and epoch, so resuming reproduces it.

    Args:
        lengths: tokens of each sequence.
        batch_size: sequences in a step, over all its batches.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))


class TokenBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Fills batches with sequences of similar length, up to `tokens_per_batch`; the order depends only on seed and epoch.

    Trainer derives its steps from the number of batches, so every epoch must have the same number. Fixed batches in a
    new order would ensure that, but would always average the same rows together. Instead, lengths are rounded
    (`token_batches.padded_length`): the rounded lengths fix the number and shapes of the batches, and each epoch draws
    which sequences of a rounded length go into which batch. Nearly all sequences of packed data have the same rounded
    length, so they are mixed as freely as in batches of a fixed size.
    """

    def __init__(self, lengths: Sequence[int], tokens_per_batch: int, seed: int) -> None:
        """`lengths` are the tokens of each sequence.

        Raises:
            ConfigError: the longest sequence does not fit.
        """
        longest = max(lengths)
        self._batches = token_batches(lengths, tokens_per_batch)
        self._padded = torch.tensor([padded_length(length, longest) for length in lengths])
        self._seed = seed
        self._epoch = 0

    @property
    def sampler(self) -> TokenBatchSampler:
        """Itself: when resuming, accelerate wraps this sampler to skip batches and calls only its `sampler.set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        shuffled = torch.randperm(len(self._padded), generator=generator)
        longest_first = shuffled[torch.argsort(self._padded[shuffled], descending=True, stable=True)].tolist()
        for number in torch.randperm(len(self._batches), generator=generator).tolist():
            batch = self._batches[number]
            yield longest_first[batch.start : batch.start + batch.sequences]
