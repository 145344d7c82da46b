"""The held-out loss of a split on disk: what is in memory meanwhile, and that the order of rows is that of their lengths."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy
import pytest
import torch

from llmft_cli.training.batches.collate import collate
from llmft_cli.training.loop.held_out import held_out_loss
from llmft_cli.training.step import loss

from ..made_sequences import sequences_of

Batch = dict[str, Any]
CPU = torch.device("cpu")


def rows_of_lengths(lengths: Sequence[int]) -> list[dict[str, Any]]:
    rows = [[(number * 7 + place) % 50 for place in range(length)] for number, length in enumerate(lengths)]
    return [{"input_ids": row, "labels": [-100, *row[1:]], "row_lengths": [len(row)]} for row in rows]


class Row(dict[str, Any]):
    """A row that can be watched."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Split:
    """Makes its rows when they are asked for, as a split on disk does, and counts how many are alive."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows
        self._alive: weakref.WeakSet[Row] = weakref.WeakSet()
        self.most = 0

    @property
    def lengths(self) -> Any:
        return numpy.array([len(row["input_ids"]) for row in self._rows])

    def __getitem__(self, number: int) -> Row:
        row = Row(self._rows[number])
        self._alive.add(row)
        self.most = max(self.most, len(self._alive))
        return row


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that the model gets; its loss is a sum of the tokens that depends on the order of adding."""
    seen: list[Batch] = []

    def summed_loss(model: torch.nn.Module, part: Batch) -> torch.Tensor:
        seen.append(part)
        return (part["targets"].float() * 0.1).sum() ** 1.5

    monkeypatch.setattr(loss, "summed_loss", summed_loss)
    return seen


def test_no_more_rows_than_a_batch_are_in_memory(batches: list[Batch]) -> None:
    """The whole split was loaded to sort it: 61 MiB on disk took 596 MiB."""
    split = Split(rows_of_lengths([2 + number * 5 % 17 for number in range(50)]))
    held_out_loss(torch.nn.Module(), split, 4, CPU)  # type: ignore[arg-type]  # all that is needed of a sequence
    assert len(batches) == 13
    assert split.most <= 5  # those of a batch, and the next as it is read


def test_a_split_on_disk_has_the_loss_of_its_sorted_rows_to_the_last_bit(batches: list[Batch]) -> None:
    rows = rows_of_lengths([9, 3, 5, 3, 12, 5, 5, 2, 9, 4, 3])
    found = held_out_loss(torch.nn.Module(), sequences_of(rows), 3, CPU)
    in_order = sorted(rows, key=lambda row: len(row["input_ids"]))
    expected = [collate(in_order[start : start + 3]) for start in range(0, len(rows), 3)]
    total = torch.zeros((), dtype=torch.float64)
    for batch, wanted in zip(batches, expected, strict=True):
        assert all(torch.equal(batch[name], wanted[name]) for name in ("input_ids", "labels", "position_ids"))
        total += ((wanted["targets"].float() * 0.1).sum() ** 1.5).double()
    tokens = sum(len(row["input_ids"]) - 1 for row in rows)
    assert (found.loss, found.tokens) == (total.item() / tokens, tokens)
