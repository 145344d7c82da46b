"""The number of steps of a training, and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from llmft_cli.settings.config import resolve
from llmft_cli.training.loop.schedule import Schedule, training_arguments, training_tokens


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"compute_dtype": "bf16"}, (False, False)),
        ({"compute_dtype": "fp16"}, (False, False)),
        ({"compute_dtype": "fp32", "use_dora": True}, (False, False)),
        ({"compute_dtype": "bf16", "use_dora": True}, (True, False)),
        ({"compute_dtype": "fp16", "use_dora": True}, (False, True)),
        ({"compute_dtype": "fp16", "quantization": "int8"}, (False, True)),
    ],
)
def test_only_what_does_not_compute_in_the_bases_type_has_autocast(
    flags: dict[str, Any], expected: tuple[bool, bool], tmp_path: Path
) -> None:
    arguments = training_arguments(tmp_path, Schedule(10, 1, 5), resolve(flags), torch.device("cpu"), evaluate=False)
    assert (arguments.bf16, arguments.fp16) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"num_epochs": 2.0}, 60),
        ({"num_epochs": 0.5}, 15),
        ({"max_steps": 10}, 150),  # with more steps than the epochs have, the epochs do not count
    ],
)
def test_the_tokens_of_a_training_are_those_of_its_epochs_or_its_steps(flags: dict[str, Any], expected: int) -> None:
    sequences = datasets.Dataset.from_dict({"row_lengths": [[6, 4], [10], [10]]})
    two_steps = {"batch_size": 2, "gradient_accumulation_steps": 1}
    assert training_tokens(sequences, resolve(two_steps | flags)) == expected
