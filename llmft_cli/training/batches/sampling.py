"""The order of sequences in an epoch: batches of about the same length, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from llmft_cli.training.batches.token_batches import padded_length, token_batches


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """As transformers' sampler of that name, but the order depends on seed and epoch alone, so that resuming finds it again.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a step, over all its batches.
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
    """Batches of as many sequences of like length as `tokens_per_batch` tokens hold, in an order of seed and epoch alone.

    Trainer counts steps by the number of batches, so it must be the same in every epoch. It would be if the batches
    were made once and only their order drawn anew. But then the same rows would always be averaged over
    together, while gradient descent wants each gradient drawn from all rows. So lengths are rounded
    (`token_batches.padded_length`), which decides how many batches there are and how long, and which sequences of
    the same rounded length go into which batch is drawn in each epoch: of packed data nearly all are of one, and
    are mixed as freely as in batches of a fixed number.
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
        """Itself: on resuming, accelerate wraps it to skip batches, and then calls `set_epoch` of its `sampler` alone."""
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
