"""Sequences of a few rows, made for a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.batches.sequences import Sequences


def sequences_of(made: Sequence[dict[str, Any]]) -> Sequences:
    """Sequences as `collate` takes them, with their tokens in rows on disk as training has them."""
    rows: list[dict[str, list[int]]] = []
    groups = []
    for sequence in made:
        start = 0
        groups.append(list(range(len(rows), len(rows) + len(sequence["row_lengths"]))))
        for length in sequence["row_lengths"]:
            rows.append({name: list(sequence[name][start : start + length]) for name in ("input_ids", "labels")})
            start += length
    return Sequences.grouped(datasets.Dataset.from_list(rows), groups)


def rows_of(*sizes: tuple[int, int]) -> datasets.Dataset:
    """A row for each pair of a number of tokens, which are the row's number, and how many of the last are supervised."""
    made = [
        {"input_ids": [number] * tokens, "labels": [IGNORED] * (tokens - supervised) + [number] * supervised}
        for number, (tokens, supervised) in enumerate(sizes)
    ]
    return datasets.Dataset.from_list(made)
