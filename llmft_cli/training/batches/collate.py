"""Batches of packed sequences, in which no row sees another, and their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.batches.token_batches import padded_length

if TYPE_CHECKING:
    import torch

    Batch = dict[str, Any]

SHAPED = ("input_ids", "labels", "position_ids")
EVERYTHING = slice(None)


def collate(sequences: Sequence[Mapping[str, Any]], longest_of_all: int | None = None) -> Batch:
    """Sequences as one batch, padded to the longest.

    Position ids restart at every row, which is how transformers' attention masks tell rows
    apart; padding is a row of its own at the end, so no padding id or attention mask is needed.

    Args:
        sequences: with `input_ids`, `labels` and `row_lengths` as `data/store.py` writes them.
        longest_of_all: tokens of the longest sequence of the data; where given, the batch is padded further, to a length
            that other batches have, too (`token_batches.padded_length`).

    Returns:
        input_ids, labels and position_ids of shape (batch, padded length); what `places` gives; and token_count, the number
        of tokens that are not padding.
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
    return {**tensors, **places(tensors), "token_count": token_count}


def places(tensors: Mapping[str, torch.Tensor]) -> Batch:
    """Where things stand in a batch, counted over its flattened positions.

    Returns:
        predicting, the positions whose next token is supervised, and targets, those tokens, both of shape
        (supervised tokens,); row_starts, the positions where the rows start and where the last one ends, of shape
        (rows + 1,), int32; longest_row, its number of tokens; and first_rows_alone, whether nothing is supervised
        but in the first row of each sequence, so that rows need not be told apart.
    """
    import torch

    # Nothing predicts the first token of a row; `data/prepare.py` never supervises it.
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
    """The batch with its tensors on the device."""
    return {name: value if isinstance(value, int) else value.to(device) for name, value in batch.items()}


def parts_within(batch: Batch, largest: int | None) -> list[Batch]:
    """The batch in parts of at most `largest` padded tokens, as far as it can be cut; their summed losses are the batch's.

    A single row is never cut. A part has no token_count.
    """
    if largest is None or batch["input_ids"].numel() <= largest:
        return [batch]
    return [part for half in halves(batch) for part in parts_within(half, largest)] or [batch]


def halves(batch: Batch) -> list[Batch]:
    """The batch cut in two: between its sequences, or in a single sequence between two rows, which do not see each other.

    Returns:
        The halves in which anything is supervised, shorn of what follows their last target; none of a single row.
    """
    count, longest = batch["input_ids"].shape
    if count > 1:
        middle = (count + 1) // 2
        cuts = [(slice(None, middle), EVERYTHING), (slice(middle, None), EVERYTHING)]
    else:
        starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()[1:]
        if not starts:
            return []
        middle = min(starts, key=lambda start: abs(2 * start - longest))
        cuts = [(EVERYTHING, slice(None, middle)), (EVERYTHING, slice(middle, None))]
    parts = ({name: batch[name][cut] for name in SHAPED} for cut in cuts)
    return [shorn(part) for part in parts if (part["labels"] != IGNORED).any()]


def each_row_alone(batch: Mapping[str, Any]) -> Batch:
    """The batch with each row up to its last target as a sequence of its own, and those without targets left out.

    For models that see other rows; the device is waited for. Behind a row is what followed it, which it does not see.
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


def shorn(part: Batch) -> Batch:
    """A part without the positions after its last target, on which no loss depends."""
    end = int((part["labels"] != IGNORED).any(0).nonzero()[-1]) + 1
    tensors = {name: tensor[:, :end].contiguous() for name, tensor in part.items()}
    return {**tensors, **places(tensors)}
