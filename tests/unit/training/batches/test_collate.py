"""Packed rows must train exactly like separate rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from llmft_cli.base.reporter import Silent
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models import loading, model_source
from llmft_cli.training.batches.collate import collate, each_row_alone, halves, parts_within
from llmft_cli.training.loop.held_out import held_out_loss
from llmft_cli.training.step.loss import summed_loss

from ..made_sequences import sequences_of

ROWS = [[11, 12, 13, 14, 15], [21, 22, 23], [31, 32, 33, 34, 35, 36, 37]]


def sequence(*rows):
    ids = [token for row in rows for token in row]
    labels = [token for row in rows for token in [IGNORED, *row[1:]]]
    return {"input_ids": ids, "labels": labels, "row_lengths": [len(row) for row in rows]}


def test_collate_pads_and_restarts_positions_at_every_row():
    batch = collate([sequence(ROWS[0], ROWS[1]), sequence(ROWS[1])])
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14, 15, 21, 22, 23], [21, 22, 23, 0, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[-100, 12, 13, 14, 15, -100, 22, 23], [-100, 22, 23, -100, -100, -100, -100, -100]]
    assert batch["token_count"] == 11


def test_each_row_alone_has_its_tokens_up_to_its_last_target():
    """Neither the second row nor the padding has a target; tokens after a row's last target are ignored."""
    first, second = sequence(*ROWS), sequence(ROWS[1])
    first["labels"][5:8] = [IGNORED] * 3
    first["labels"][-2:] = [IGNORED] * 2
    batch = each_row_alone(collate([first, second]))
    assert batch["input_ids"][:, :4].tolist() == [[11, 12, 13, 14], [31, 32, 33, 34], [21, 22, 23, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]] * 3
    assert batch["targets"].tolist() == [12, 13, 14, 15, 32, 33, 34, 35, 22, 23]
    assert batch["predicting"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert batch["row_starts"].tolist() == [0, 4, 8, 12]
    assert (batch["longest_row"], batch["first_rows_alone"]) == (4, True)


def load_fp32(tiny_model_dir):
    return loading.load_base(model_source.resolve(str(tiny_model_dir), Silent()), torch.device("cpu"), dtype=torch.float32)


def reference_loss(model, rows):
    """Row by row, with torch's own loss: no packing, padding or batching."""
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum").item()
        count += len(row) - 1
    return total / count, count


def test_packed_rows_have_the_loss_they_have_alone(tiny_model_dir):
    model = load_fp32(tiny_model_dir)
    expected, tokens = reference_loss(model, ROWS)
    for sequences in ([sequence(*ROWS)], [sequence(ROWS[2]), sequence(ROWS[0], ROWS[1])], [sequence(row) for row in ROWS]):
        found = held_out_loss(model, sequences_of(sequences), batch_size=2, device=torch.device("cpu"))
        assert found.tokens == tokens
        assert abs(found.loss - expected) < 1e-5


def test_a_row_does_not_see_the_row_before_it(tiny_model_dir):
    model = load_fp32(tiny_model_dir)

    def logits_of_second_row(first):
        batch = collate([sequence(first, ROWS[1])])
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[
                0, len(first) :
            ]

    difference = (logits_of_second_row([11, 12, 13, 14]) - logits_of_second_row([91, 92, 93, 94])).abs().max()
    assert difference < 1e-6


def test_held_out_loss_leaves_mode_and_random_state_alone(tiny_model_dir):
    model = load_fp32(tiny_model_dir).train()
    before = torch.get_rng_state()
    held_out_loss(model, sequences_of([sequence(*ROWS)]), batch_size=1, device=torch.device("cpu"))
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


# -- parts


def shapes(parts):
    return [tuple(part["input_ids"].shape) for part in parts]


def test_halves_are_cut_between_sequences_and_lose_their_padding():
    batch = collate([sequence(ROWS[1]), sequence(ROWS[0]), sequence(ROWS[2], ROWS[0]), sequence(ROWS[1])])
    first, second = halves(batch)
    assert first["input_ids"].tolist() == [[21, 22, 23, 0, 0], [11, 12, 13, 14, 15]]
    assert first["labels"].tolist() == [[-100, 22, 23, -100, -100], [-100, 12, 13, 14, 15]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert first["predicting"].tolist() == [0, 1, 5, 6, 7, 8]
    assert shapes([second]) == [(2, 12)]


def test_a_packed_sequence_is_cut_between_the_rows_nearest_its_middle():
    batch = collate([sequence(ROWS[0], ROWS[1], ROWS[2])])  # of 5, 3 and 7 tokens
    first, second = halves(batch)
    assert first["input_ids"].tolist() == [[*ROWS[0], *ROWS[1]]]
    assert second["input_ids"].tolist() == [ROWS[2]]
    assert second["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert second["predicting"].tolist() == [0, 1, 2, 3, 4, 5]
    assert halves(second) == []


def test_a_half_without_targets_is_left_out():
    silent = {"input_ids": [1, 2], "labels": [IGNORED, IGNORED], "row_lengths": [2]}
    assert shapes(halves(collate([silent, sequence(ROWS[0])]))) == [(1, 5)]
    assert halves(collate([silent, silent])) == []
    assert shapes(parts_within(collate([silent, silent]), 1)) == [(2, 2)]


def test_parts_are_as_large_as_allowed_and_a_row_stays_whole():
    batch = collate([sequence(ROWS[0], ROWS[1]), sequence(ROWS[2])])
    assert parts_within(batch, None) == [batch]
    assert parts_within(batch, 16) == [batch]
    assert shapes(parts_within(batch, 15)) == [(1, 8), (1, 7)]
    assert shapes(parts_within(batch, 7)) == [(1, 5), (1, 3), (1, 7)]
    assert shapes(parts_within(batch, 1)) == [(1, 5), (1, 3), (1, 7)]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_fp32(tiny_model_dir)


some_row = some.integers(2, 12).flatmap(lambda length: some.lists(some.integers(10, 300), min_size=length, max_size=length))


@pytest.mark.slow
@settings(deadline=None)
@given(packed=some.lists(some.lists(some_row, min_size=1, max_size=4), min_size=1, max_size=5), largest=some.integers(1, 60))
def test_the_losses_of_the_parts_are_the_batch_s(model, packed, largest):
    batch = collate([sequence(*rows) for rows in packed])
    parts = parts_within(batch, largest)
    with torch.no_grad():
        whole, summed = summed_loss(model, batch), sum(summed_loss(model, part) for part in parts)
    assert summed == pytest.approx(whole.item(), rel=1e-5)
    assert sum(len(part["predicting"]) for part in parts) == len(batch["predicting"])
    for part in parts:
        assert part["input_ids"].numel() <= largest or halves(part) == []
