"""The held-out loss of a split on disk: what is in memory meanwhile, and that the order of rows is that of their lengths."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from llmft_cli.base.reporter import Silent
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.fast.cuda_graphs import RecordedPasses
from llmft_cli.training.loop.held_out import Evaluation, held_out_loss
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


class Recorded(RecordedPasses):
    """Recorded passes whose recordings are stand-ins that compute anew; `made` are the tokens of each recorded batch."""

    made: list[int]

    def beside(self, work: Any) -> RecordedPasses:
        other = Recorded([], work, self._memory)
        other._warm = True
        return other

    def _record(self, batch: Batch, divisor: torch.Tensor) -> Any:
        self.__dict__.setdefault("made", []).append(batch["input_ids"].numel())
        return SimpleNamespace(replay=self._work)


def evaluation_beside(recorded: RecordedPasses | None, sequences: int = 1) -> Evaluation:
    lengths = [2 + number * 5 % 17 for number in range(50)]  # 500 tokens
    held_out = sequences_of(rows_of_lengths(lengths))
    if recorded is None:
        return Evaluation(torch.nn.Module(), held_out, CPU, 8, Silent())
    return Evaluation(torch.nn.Module(), held_out, CPU, sequences, Silent(), recorded, capacity=64)


def test_rows_are_evaluated_a_few_at_once_where_passes_are_not_recorded(batches: list[Batch]) -> None:
    evaluation = evaluation_beside(None)
    evaluation.run()
    assert not evaluation.is_recorded
    assert [len(batch["input_ids"]) for batch in batches] == [8] * 6 + [2]


def test_where_passes_are_recorded_rows_are_packed_and_recorded_beside_them(
    batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings were forgotten for each evaluation: making them anew took most of the time of a small model's training."""
    monkeypatch.setattr(loss, "summed_loss", lambda model, part: batches.append(part) or part["targets"].clamp(min=0).sum())
    training = Recorded([torch.nn.Parameter(torch.zeros(1))], lambda batch, divisor: divisor)
    evaluation = evaluation_beside(training)
    tokens = [evaluation.run()]  # the first runs directly, and compiles kernels
    assert [batch["input_ids"].shape for batch in batches] == [(1, batch["input_ids"].numel()) for batch in batches]
    assert len(batches) == 8
    assert max(batch["input_ids"].numel() for batch in batches) == 64
    for _ in range(2):
        training.run(collate(rows_of_lengths([9])), torch.tensor(1.0))
    assert training.has_recordings
    assert evaluation.is_recorded
    tokens += [evaluation.run(), evaluation.run()]
    assert evaluation._recorded is not None
    made = evaluation._recorded.made  # type: ignore[attr-defined]
    assert set(made) == {64, 56}
    assert len(made) == 2
    assert {found.loss for found in tokens} == {tokens[0].loss}
    assert training.has_recordings


def test_packed_sequences_are_evaluated_as_many_at_once_as_are_trained(
    batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the batches have the shape of training's, whose memory they fit in; all but the last share one recording."""
    monkeypatch.setattr(loss, "summed_loss", lambda model, part: batches.append(part) or part["targets"].clamp(min=0).sum())
    training = Recorded([torch.nn.Parameter(torch.zeros(1))], lambda batch, divisor: divisor)
    evaluation = evaluation_beside(training, sequences=3)
    direct = evaluation.run().loss
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(3, 64), (3, 64), (2, 64)]
    for _ in range(2):
        training.run(collate(rows_of_lengths([9])), torch.tensor(1.0))
    assert evaluation.run().loss == direct
    assert evaluation._recorded is not None
    assert evaluation._recorded.made == [3 * 64, 2 * 64]  # type: ignore[attr-defined]


def test_an_evaluation_that_could_not_be_recorded_runs_directly_from_then_on(
    batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Recorded([torch.nn.Parameter(torch.zeros(1))], lambda batch, divisor: divisor)
    evaluation = evaluation_beside(training)
    evaluation.run()
    for _ in range(2):
        training.run(collate(rows_of_lengths([9])), torch.tensor(1.0))
    assert evaluation._recorded is not None
    evaluation._recorded.failure = "no graphs here"
    assert not evaluation.is_recorded
