"""The facts of a training: what of them comes from the run, and what hints are made of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmft_cli.data.store import REPORT_FILE
from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.judgement.facts import facts_of_data, size_of

from ..made_sequences import rows_of
from ..weather import prepared_run, write_rows
from .curves import FACTS


def test_rows_and_supervised_tokens_of_a_split() -> None:
    assert size_of(Sequences.one_each(rows_of((4, 2), (3, 1), (2, 1)))) == (3, 4)


def test_what_prepare_truncated(tmp_path, tiny_model_dir):
    data = write_rows(tmp_path / "weather.jsonl")
    whole = prepared_run(tmp_path / "whole", data, tiny_model_dir)
    report = json.loads((whole.data / REPORT_FILE).read_text())
    assert facts_of_data(whole) == {"training_rows": report["splits"]["train"]}
    longest = report["lengths"]["max"]
    cut = prepared_run(tmp_path / "cut", data, tiny_model_dir, max_seq_length=longest - 4, on_overlength="truncate")
    # A few rows lost only the line break after the end of turn.
    assert facts_of_data(cut) == {"training_rows": 36, "truncated_rows": 22, "lost_ends": 14}
    dropped = prepared_run(tmp_path / "dropped", data, tiny_model_dir, max_seq_length=longest - 4, max_rejected=1.0)
    assert set(facts_of_data(dropped)) == {"training_rows"}


def test_a_damaged_report_does_not_cost_the_training(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    (run.data / REPORT_FILE).write_text('{"torn')
    assert facts_of_data(run) == {}


@pytest.mark.parametrize(
    ("changes", "share", "flag"),
    [
        ({"num_epochs": 3.0}, 2, "--num-epochs 6"),
        ({"num_epochs": 2.5}, 0.4, "--num-epochs 1"),
        ({"num_epochs": 1.0}, 0.01, "--num-epochs 0.1"),
        ({"num_epochs": None, "planned_steps": 45}, 2, "--max-steps 90"),
        ({"num_epochs": None, "planned_steps": 45}, 0.001, "--max-steps 1"),
    ],
)
def test_the_flag_for_another_length(changes, share, flag):
    assert replace(FACTS, **changes).length_flag(share) == flag


def test_training_again_begins_where_this_training_began():
    named = replace(FACTS, run=Path("runs/my own"))
    assert named.train_again == "llmft train 'runs/my own' --overwrite"
    further = replace(named, starting_adapter=Path("/other/adapter"))
    assert further.train_again == "llmft train 'runs/my own' --overwrite --from-adapter /other/adapter"
    assert (named.start_name, further.start_name) == ("the base", "the adapter it began with")
