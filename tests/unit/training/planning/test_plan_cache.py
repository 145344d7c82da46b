"""Plans that were predicted before are read back, exactly, and only for the same question."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.models.builtin import cache_dir
from llmft_cli.settings.compute_types import ALL_ABILITIES
from llmft_cli.settings.config import resolve
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning import plan_cache
from llmft_cli.training.planning.memory import Breakdown
from llmft_cli.training.planning.options import Option
from llmft_cli.training.planning.plan_cache import question, remembered
from llmft_cli.training.planning.simulation import BatchShape, full_batch

from ..meta_models import small_shape

FOUND = [
    Option(Plan(2, 4, 0, "adamw_torch_fused", dequantized_weights=True), Breakdown(*range(9)), 12345, 1 / 3),
    Option(Plan(1, 8, 5, "paged_adamw_8bit", embeddings_on_cpu=True), Breakdown(*range(9, 18)), 678, 1e5),
]


def predicted() -> list[Option]:
    return list(FOUND)


def never() -> list[Option]:
    raise AssertionError("it was predicted again")


def plans() -> list[Path]:
    return list((cache_dir() / "plans").iterdir())


def test_the_second_answer_is_the_first() -> None:
    assert remembered("a" * 64, predicted) == FOUND
    assert remembered("a" * 64, never) == FOUND
    assert remembered("b" * 64, lambda: FOUND[:1]) == FOUND[:1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace("12345", "12346"),
        lambda content: "[]",
        lambda content: "",
        lambda content: content.replace("batch_size", "batch"),
    ],
)
def test_a_damaged_answer_is_predicted_anew_and_replaced(damage: Callable[[str], str]) -> None:
    remembered("a" * 64, predicted)
    (file,) = plans()
    file.write_text(damage(file.read_text()))
    assert remembered("a" * 64, predicted) == FOUND
    assert remembered("a" * 64, never) == FOUND


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "file"))
    assert remembered("a" * 64, predicted) == FOUND


def test_only_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "MOST_FILES", 2)
    for age, asked in enumerate("dcba"):
        remembered(asked * 64, predicted)
        for file in plans():
            os.utime(file, (0, 1000 + age - 10 * (file.stem[0] != asked)))
    assert len(plans()) == 2
    remembered("a" * 64, never)


BATCH = full_batch(1, 64)


def asked(batch: BatchShape = BATCH, available: int = 10, able: Any = ALL_ABILITIES, layers: int = 5, **flags: Any) -> str:
    one = {"batch_size": 1, "gradient_accumulation_steps": 1}
    return question(small_shape(layers), resolve({**one, **flags}), lambda size: batch, available, able)


def test_the_same_question_with_settings_that_change_no_step() -> None:
    assert asked() == asked(learning_rate=1e-3, num_epochs=2.0, seed=7)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": full_batch(1, 65)},
        {"batch": replace(BATCH, supervised=10)},
        {"available": 11},
        {"able": replace(ALL_ABILITIES, triton=False)},
        {"layers": 6},
        {"lora_r": 8},
        {"optim": "lion_8bit"},
        {"quantization": "none"},
        {"plan": "frugal"},
        {"gradient_accumulation_steps": 2},
    ],
)
def test_everything_else_is_another_question(changes: dict[str, Any]) -> None:
    assert asked(**changes) != asked()


def test_other_versions_and_sources_are_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    before = asked()
    with monkeypatch.context() as other:
        other.setattr(plan_cache, "versions", lambda: {"torch": "0"})
        assert asked() != before
    with monkeypatch.context() as other:
        other.setattr(plan_cache, "sources", lambda: "other")
        assert asked() != before
    assert asked() == before
