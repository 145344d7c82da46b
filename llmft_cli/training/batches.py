"""Batches of packed sequences, in which no row sees another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmft_cli.data.examples import IGNORED

if TYPE_CHECKING:
    import torch


def collate(sequences: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Sequences as one batch, padded to the longest.

    Position ids restart at every row, which is how transformers' attention masks tell rows
    apart; padding is a row of its own at the end, so no padding id or attention mask is needed.

    Args:
        sequences: with `input_ids`, `labels` and `row_lengths` as `data/store.py` writes them.

    Returns:
        input_ids, labels and position_ids of shape (batch, longest); predicting, the flattened positions
        whose next token is supervised, of shape (supervised tokens,); and token_count, the number of tokens
        that are not padding, of shape ().
    """
    import torch

    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for sequence in sequences:
        padding = longest - len(sequence["input_ids"])
        batch["input_ids"].append([*sequence["input_ids"], *[0] * padding])
        batch["labels"].append([*sequence["labels"], *[IGNORED] * padding])
        lengths = [*sequence["row_lengths"], padding]
        batch["position_ids"].append([position for length in lengths for position in range(length)])
    tensors = {name: torch.tensor(values, dtype=torch.long) for name, values in batch.items()}
    # Nothing predicts the first token of a sequence; `data/prepare.py` never supervises it.
    supervised = (tensors["labels"] != IGNORED).flatten().nonzero().squeeze(1)
    token_count = torch.tensor(sum(len(sequence["input_ids"]) for sequence in sequences))
    return {**tensors, "predicting": supervised - 1, "token_count": token_count}
