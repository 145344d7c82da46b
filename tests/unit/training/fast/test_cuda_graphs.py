"""Batches as recorded passes want them: padded to sizes that other batches have too, with the same loss."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models import random_model
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.token_batches import padded_length
from llmft_cli.training.fast import cuda_graphs
from llmft_cli.training.fast.cuda_graphs import RecordedPasses, padded_batch, recorded_passes
from llmft_cli.training.loop import trainer as trainer_module
from llmft_cli.training.step.loss import loss_and_gradients
from llmft_cli.training.step.tuned_model import make_trainable

from ..meta_models import small_shape
from ..tiny_training import make_trainer

CPU = torch.device("cpu")


def sequence(*rows: list[int], supervised_from: int = 1) -> dict[str, list[int]]:
    return {
        "input_ids": [token for row in rows for token in row],
        "labels": [token if place >= supervised_from else IGNORED for row in rows for place, token in enumerate(row)],
        "row_lengths": [len(row) for row in rows],
    }


def two_sequences() -> dict[str, Any]:
    """Of 64 tokens with rows of 40 and 24, and of one row of 64."""
    return collate(
        [sequence([*range(5, 45)], [*range(50, 74)], supervised_from=20), sequence([*range(7, 71)], supervised_from=50)]
    )


def test_what_is_padded_has_no_target_and_no_token() -> None:
    batch = two_sequences()
    assert len(batch["targets"]) == 20 + 4 + 14
    padded = padded_batch(batch)
    # Eighths of 128 positions.
    assert padded["targets"].tolist() == [*batch["targets"].tolist(), *[IGNORED] * 10]
    assert padded["predicting"].tolist() == [*batch["predicting"].tolist(), *[127] * 10]
    assert 127 not in batch["predicting"]
    assert padded["row_starts"].tolist() == [0, 40, 64, *[128] * 29]
    assert padded["row_starts"].dtype == torch.int32
    assert padded["longest_row"] == 64
    assert padded["input_ids"] is batch["input_ids"]


@pytest.mark.parametrize(("longest", "size"), [(1, 1), (2, 2), (33, 64), (64, 64)])
def test_the_longest_row_is_taken_as_a_power_of_two_within_the_sequence(longest: int, size: int) -> None:
    assert padded_batch(two_sequences() | {"longest_row": longest})["longest_row"] == size


def test_rows_that_fill_their_sequences_are_as_long_as_they_are() -> None:
    batch = collate([sequence([*range(5, 48)]), sequence([*range(5, 20)])])
    assert batch["first_rows_alone"]
    assert padded_batch(batch)["longest_row"] == 43


@pytest.mark.parametrize(
    ("sequences", "alone"),
    [
        ([sequence([1, 2, 3])], True),
        ([sequence([1, 2, 3]), sequence([1, 2])], True),
        ([sequence([1, 2, 3], [4, 5])], False),
        ([sequence([1, 2, 3], [4, 5], supervised_from=2)], True),
    ],
    ids=["one row", "padding", "two rows", "nothing supervised in the second"],
)
def test_rows_need_not_be_told_apart_where_only_first_ones_have_targets(sequences: list[Any], alone: bool) -> None:
    assert collate(sequences)["first_rows_alone"] is alone


def test_a_padded_batch_has_the_same_loss_and_gradients() -> None:
    model = make_trainable(random_model.build(small_shape(), CPU, "nf4", torch.float32), resolve({}), "a model")
    model.train()
    batch = two_sequences()
    results = []
    for one in (batch, padded_batch(batch)):
        model.zero_grad()
        loss = loss_and_gradients(model, one, torch.tensor(38.0))
        results.append([loss, *(weights.grad for weights in model.parameters() if weights.requires_grad)])
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-6, atol=1e-9)


def test_nothing_is_recorded_without_a_gpu() -> None:
    model = make_trainable(random_model.build(small_shape(), CPU, "nf4", torch.float32), resolve({}), "a model")
    assert recorded_passes(model, CPU, lambda batch, divisor: divisor) is None


def broken_graph() -> None:
    raise RuntimeError("no graphs here\nand more about it")


def test_what_cannot_be_recorded_is_computed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", broken_graph)
    model = make_trainable(random_model.build(small_shape(), CPU, "nf4", torch.float32), resolve({}), "a model")
    model.train()
    weights = [weights for weights in model.parameters() if weights.requires_grad]
    batch, divisor = two_sequences(), torch.tensor(38.0)
    expected = loss_and_gradients(model, batch, divisor)
    gradients = [one.grad for one in weights]
    model.zero_grad()
    passes = RecordedPasses(weights, partial(loss_and_gradients, model))
    failures = []
    for times in (1, 2, 3):  # as it is, tried to be recorded, and not tried again
        torch.testing.assert_close(passes.run(batch, divisor), expected, rtol=1e-6, atol=0)
        failures.append(passes.failure)
        for one, gradient in zip(weights, gradients, strict=True):
            torch.testing.assert_close(one.grad, times * gradient, rtol=1e-5, atol=1e-8)
    assert failures == [None, "no graphs here", "no graphs here"]


def test_gradients_stay_where_recordings_write_them() -> None:
    """Also after they were cleared, or came from elsewhere."""
    weights = torch.nn.Parameter(torch.zeros(3))

    def add_one(batch: Any, divisor: torch.Tensor) -> torch.Tensor:
        weights.grad = torch.ones(3) if weights.grad is None else weights.grad.add_(1)
        return divisor

    passes = RecordedPasses([weights], add_one)
    passes.run(two_sequences(), torch.tensor(1.0))
    own = weights.grad
    for before, after in ((None, 1.0), (torch.full((3,), 5.0), 6.0)):
        weights.grad = before
        passes._warm = False
        passes.run(two_sequences(), torch.tensor(1.0))
        assert weights.grad is own
        assert own.tolist() == [after] * 3


def test_gradients_of_recordings_that_were_released_are_not_held_beside_new_ones() -> None:
    """After memory had run out they stayed, and every later pass made its own."""
    weights = torch.nn.Parameter(torch.zeros(3))
    passes = RecordedPasses([weights], lambda batch, divisor: divisor)
    passes.run(two_sequences(), torch.tensor(1.0))
    assert weights.grad is not None
    held = weakref.ref(weights.grad)
    passes.release()
    weights.grad = None
    assert held() is None


class Recordings:
    """Recorded passes whose recordings are stand-ins; the loss of a batch is its length, and nothing is computed.

    Attributes:
        computed: lengths of batches that went through as they are.
        made: those of recordings, in the order in which they were made.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        monkeypatch.setattr(cuda_graphs, "MOST_RECORDINGS", most)
        self.computed: list[int] = []
        self.made: list[int] = []
        self.passes = RecordedPasses([torch.nn.Parameter(torch.zeros(1))], self._compute)
        monkeypatch.setattr(self.passes, "_record", self._record)

    def _compute(self, batch: Any, divisor: torch.Tensor) -> torch.Tensor:
        self.computed.append(batch["input_ids"].shape[1])
        return torch.tensor(float(self.computed[-1]))

    def _record(self, batch: Any, divisor: torch.Tensor) -> Any:
        length = batch["input_ids"].shape[1]
        self.made.append(length)
        return SimpleNamespace(replay=lambda batch, divisor: torch.tensor(float(length)))

    def run(self, *lengths: int) -> None:
        for length in lengths:
            batch = collate([sequence([*range(5, 5 + length)])])
            assert self.passes.run(batch, torch.tensor(1.0)).item() == length


def test_of_too_many_recordings_the_one_that_was_not_used_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all were let go for good at the first shape too many: a training with packed rows lost them after some steps."""
    recordings = Recordings(monkeypatch, most=2)
    recordings.run(10, 10, 10, 10, 20, 10, 10, 30, 10, 20)
    assert recordings.computed == [10]
    assert recordings.made == [10, 20, 30, 20]
    assert recordings.passes.failure is None


def test_where_hardly_any_recording_is_used_again_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """All recordings are let go, and the memory that they share with them."""
    recordings = Recordings(monkeypatch, most=3)
    recordings.run(10, 10, 20, 30, 30, 40, 30)
    assert recordings.made == [10, 20, 30]
    assert recordings.computed == [10, 40, 30]
    assert recordings.passes.failure == "too many batch shapes (3 CUDA graphs were reused 1 times)"
    assert recordings.passes._recordings == {}


def test_recordings_that_were_let_go_for_an_evaluation_are_not_counted_as_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = Recordings(monkeypatch, most=3)
    for _ in range(4):
        recordings.run(10, 20, 10)
        recordings.passes.release()
    recordings.run(10, 20)
    assert recordings.made == [20, 10] + 4 * [10, 20]
    assert recordings.passes.failure is None


def test_memory_of_a_pass_that_could_not_be_recorded_is_free_when_it_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = Recordings(monkeypatch, most=3)
    held: list[weakref.ref[torch.Tensor]] = []

    def out_of_memory(batch: Any, divisor: torch.Tensor) -> Any:
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(f"CUDA out of memory beside {len(activations)}")

    monkeypatch.setattr(recordings.passes, "_record", out_of_memory)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(held[0]()))  # type: ignore[arg-type]
    recordings.run(10, 10)
    assert recordings.passes.failure == "CUDA out of memory beside 3"
    assert held[1] is None


def test_where_passes_are_recorded_batches_come_in_few_lengths(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Each is padded to one of the lengths that token batches have, of 30 sequences of 30 to 80 tokens."""
    plain = make_trainer(tiny_model_dir, tmp_path)
    monkeypatch.setattr(trainer_module, "recorded_passes", lambda *_: RecordedPasses([], lambda batch, divisor: divisor))
    padding = make_trainer(tiny_model_dir, tmp_path)
    longest = plain.train_dataset.lengths.max()
    pairs = list(zip(plain.get_train_dataloader(), padding.get_train_dataloader(), strict=True))
    lengths, padded = ([pair[number]["input_ids"].shape[1] for pair in pairs] for number in (0, 1))
    assert padded == [padded_length(length, longest) for length in lengths]
    assert padded != lengths
    assert all(one["token_count"] == other["token_count"] for one, other in pairs)
