"""Packed rows must train exactly as if each stood alone."""

import torch

from llmft_cli import models
from llmft_cli.data.examples import IGNORED
from llmft_cli.progress import Silent
from llmft_cli.training.batches import collate
from llmft_cli.training.held_out import held_out_loss

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
    assert batch["token_count"].item() == 11


def load_fp32(tiny_model_dir):
    return models.load_base(models.resolve(str(tiny_model_dir), Silent()), torch.device("cpu"), dtype=torch.float32)


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
        found = held_out_loss(model, sequences, batch_size=2, device=torch.device("cpu"))
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
    held_out_loss(model, [sequence(*ROWS)], batch_size=1, device=torch.device("cpu"))
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
