"""Batches of packed sequences whose rows do not attend to each other, and splitting such batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.batches.token_batches import padded_length

if TYPE_CHECKING:
    import torch

    Batch = dict[str, Any]

TOKEN_TENSORS = ("input_ids", "labels", "position_ids")
ALL = slice(None)


def collate(sequences: Sequence[Mapping[str, Any]], longest_of_all: int | None = None) -> Batch:
    """Collate sequences into one batch, padded to the longest.

    Position ids restart at every row, so transformers' attention masks separate the rows. Padding is a row of its own
    at the end, so neither a padding id nor an attention mask is needed.

    Args:
        sequences: with `input_ids`, `labels` and `row_lengths` as in `batches/sequences.py`.
        longest_of_all: tokens of the dataset's longest sequence; if given, the batch is padded to one of a few lengths
            (`token_batches.padded_length`).

    Returns:
        input_ids, labels and position_ids of shape (batch, padded length); the values of `batch_indices`; and
        token_count, the number of tokens without padding.
    """
    import numpy
    import torch

    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    if longest_of_all is not None:
        longest = padded_length(longest, longest_of_all)
    shape = (len(sequences), longest)
    batch = {name: numpy.full(shape, filling) for name, filling in (("input_ids", 0), ("labels", IGNORED), ("position_ids", 0))}
    for number, sequence in enumerate(sequences):
        length = len(sequence["input_ids"])
        batch["input_ids"][number, :length] = sequence["input_ids"]
        batch["labels"][number, :length] = sequence["labels"]
        lengths = numpy.array([*sequence["row_lengths"], longest - length])
        batch["position_ids"][number] = numpy.arange(longest) - numpy.repeat(lengths.cumsum() - lengths, lengths)
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    token_count = sum(len(sequence["input_ids"]) for sequence in sequences)
    return {**tensors, **batch_indices(tensors), "token_count": token_count}


def batch_indices(tensors: Mapping[str, torch.Tensor]) -> Batch:
    """Indices of supervised tokens and rows, counted over the flattened batch.

    Returns:
        predicting, the positions whose next token is supervised, and targets, those tokens, both of shape
        (supervised tokens,); row_starts, the start of each row and the end of the last, of shape (rows + 1,), int32;
        longest_row, in tokens; and first_rows_alone, whether only the first row of each sequence is supervised, so
        that causal attention needs no row boundaries.
    """
    import torch

    # The first token of a row has no predictor; `data/prepare.py` never supervises it.
    labels, length = tensors["labels"].flatten(), tensors["labels"].shape[1]
    supervised = (labels != IGNORED).nonzero().squeeze(1)
    positions = tensors["position_ids"].flatten()
    starts = (positions == 0).nonzero().squeeze(1)
    ends = torch.nn.functional.pad(starts, (0, 1), value=len(positions)).int()
    return {
        "predicting": supervised - 1,
        "targets": labels[supervised],
        "row_starts": ends,
        "longest_row": int(positions.max()) + 1,
        "first_rows_alone": bool((positions[supervised] == supervised % length).all()),
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the batch's tensors to the device."""
    return {name: value if isinstance(value, int) else value.to(device) for name, value in batch.items()}


def parts_within(batch: Batch, largest: int | None) -> list[Batch]:
    """Split the batch into parts of at most `largest` tokens, padding included; their losses add up to the batch's.

    A single row is never split, whatever its length. Parts have no token_count.
    """
    if largest is None or batch["input_ids"].numel() <= largest:
        return [batch]
    return [part for half in halves(batch) for part in parts_within(half, largest)] or [batch]


def halves(batch: Batch) -> list[Batch]:
    """Split the batch between sequences, or a single sequence between two rows, which do not attend to each other.

    Returns:
        The halves with supervised tokens, trimmed after their last target; an empty list for a single row.
    """
    count, longest = batch["input_ids"].shape
    if count > 1:
        middle = (count + 1) // 2
        cuts = [(slice(None, middle), ALL), (slice(middle, None), ALL)]
    else:
        starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()[1:]
        if not starts:
            return []
        middle = min(starts, key=lambda start: abs(2 * start - longest))
        cuts = [(ALL, slice(None, middle)), (ALL, slice(middle, None))]
    parts = ({name: batch[name][cut] for name in TOKEN_TENSORS} for cut in cuts)
    return [trimmed(part) for part in parts if (part["labels"] != IGNORED).any()]


def each_row_alone(batch: Mapping[str, Any]) -> Batch:
    """Put each row in its own sequence, up to its last target; rows without targets are dropped.

    For models that cannot separate packed rows. Shorter rows are padded with the tokens that follow them, which causal
    attention hides. Synchronizes with the device.
    """
    import torch

    starts, predicting = batch["row_starts"].long(), batch["predicting"]
    rows, row_of = torch.unique(torch.searchsorted(starts, predicting, right=True) - 1, return_inverse=True)
    places_in_row = predicting - starts[rows[row_of]]
    longest = int(places_in_row.max()) + 1
    within = torch.arange(longest, device=predicting.device)
    positions = (starts[rows, None] + within).clamp(max=batch["input_ids"].numel() - 1)
    return {
        "input_ids": batch["input_ids"].flatten()[positions],
        "position_ids": within.expand(len(rows), -1),
        "predicting": row_of * longest + places_in_row,
        "targets": batch["targets"],
        "row_starts": (torch.arange(len(rows) + 1, device=predicting.device) * longest).int(),
        "longest_row": longest,
        "first_rows_alone": True,
    }


def trimmed(part: Batch) -> Batch:
    """The part without the positions after its last target, which do not affect the loss."""
    end = int((part["labels"] != IGNORED).any(0).nonzero()[-1]) + 1
    tensors = {name: tensor[:, :end].contiguous() for name, tensor in part.items()}
    return {**tensors, **batch_indices(tensors)}
