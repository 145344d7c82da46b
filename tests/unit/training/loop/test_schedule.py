"""The number of steps of a training, and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.settings.config import FIELDS
from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.loop.schedule import Schedule, plan, training_arguments, training_tokens

from ...settled import settled
from ..made_sequences import rows_of


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
    arguments = training_arguments(tmp_path, Schedule(10, 1, 5), settled(flags), torch.device("cpu"), evaluate=False)
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
    sequences = Sequences.grouped(rows_of((6, 1), (4, 1), (10, 1), (10, 1)), [[0, 1], [2], [3]])
    two_steps = {"batch_size": 2, "gradient_accumulation_steps": 1}
    assert training_tokens(sequences, settled(two_steps | flags)) == expected


@pytest.mark.parametrize(
    ("flags", "warmup"),
    [
        ({"max_steps": 1}, 0),
        ({"max_steps": 1, "warmup_ratio": 1.0}, 0),
        ({"max_steps": 2}, 1),
        ({"max_steps": 10, "warmup_ratio": 1.0}, 9),
        ({"max_steps": 100}, 5),
        ({"max_steps": 100, "warmup_ratio": 0.0}, 0),
    ],
)
def test_a_warm_up_never_takes_all_steps(flags: dict[str, Any], warmup: int) -> None:
    """The first step of a warm-up has rate 0: a training of one step learnt nothing."""
    sequences = Sequences.one_each(rows_of((10, 1)))
    assert plan(sequences, settled(flags)).warmup == warmup


@given(steps=st.integers(1, 1000), ratio=st.floats(0, 1), scheduler=st.sampled_from(FIELDS["lr_scheduler"].setting.choices))
def test_some_step_has_the_whole_rate(steps: int, ratio: float, scheduler: str) -> None:
    from transformers import get_scheduler

    sequences = Sequences.one_each(rows_of((10, 1)))
    schedule = plan(sequences, settled({"max_steps": steps, "warmup_ratio": ratio}))
    weights = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weights], lr=1.0)
    rates = get_scheduler(scheduler, optimizer, schedule.warmup, schedule.total)
    assert rates.lr_lambdas[0](schedule.warmup) == 1.0
    assert schedule.warmup < schedule.total


@pytest.mark.parametrize(("every", "expected"), [(500.0, 40), (40.0, 40), (7.0, 7), (0.2, 8), (0.001, 1)])
def test_an_interval_above_all_steps_is_all_steps(every: float, expected: int) -> None:
    sequences = Sequences.one_each(rows_of((10, 1)))
    assert plan(sequences, settled({"max_steps": 40, "eval_steps": every})).evaluate_every == expected
