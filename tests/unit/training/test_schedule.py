"""How many steps a training has, and the tokens in them."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from llmft_cli.config import resolve
from llmft_cli.training.schedule import training_tokens


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"num_epochs": 2.0}, 60),
        ({"num_epochs": 0.5}, 15),
        ({"max_steps": 10, "num_epochs": 1.0}, 150),  # with more steps than the epochs have, the epochs do not count
    ],
)
def test_the_tokens_of_a_training_are_those_of_its_epochs_or_its_steps(flags: dict[str, Any], expected: int) -> None:
    sequences = datasets.Dataset.from_dict({"row_lengths": [[6, 4], [10], [10]]})
    two_steps = {"batch_size": 2, "gradient_accumulation_steps": 1}
    assert training_tokens(sequences, resolve(two_steps | flags)) == expected
