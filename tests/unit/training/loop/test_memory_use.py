"""What is said of a card's memory when it ran out, with a budget and without; CUDA's answers are made up."""

from __future__ import annotations

import pytest
import torch

from llmft_cli.training.device_memory import CONTEXT_BYTES
from llmft_cli.training.loop.smaller_passes import MemoryUse, memory_use

GIBIBYTE = 2**30
CARD = 80 * GIBIBYTE


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A card of 80 GiB as torch tells of it: free and allocated and reserved bytes, and the share that torch may take."""
    told: dict[str, float] = {"share": 1.0}
    answers = {
        "mem_get_info": lambda device: (told["free"], CARD),
        "memory_allocated": lambda device: told["allocated"],
        "memory_reserved": lambda device: told["reserved"],
        "get_per_process_memory_fraction": lambda device: told["share"],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return told


def used(card: dict[str, float], **told: float) -> MemoryUse:
    card |= told
    found = memory_use(torch.device("cuda", 0))
    assert found is not None
    return found


def test_without_a_budget_it_is_the_whole_card(card: dict[str, float]) -> None:
    found = used(card, free=GIBIBYTE, allocated=70 * GIBIBYTE, reserved=72 * GIBIBYTE)
    assert found == MemoryUse(CARD, 70 * GIBIBYTE, 70 * GIBIBYTE, 72 * GIBIBYTE, others=7 * GIBIBYTE)


@pytest.mark.parametrize("taken_by_others", [0, 30 * GIBIBYTE])
def test_a_budget_is_the_total_and_other_processes_take_nothing_of_it(card: dict[str, float], taken_by_others: int) -> None:
    """`--max-vram 6GiB`: torch has 5.1 of them, and CUDA itself the rest."""
    budget, reserved, context = 6 * GIBIBYTE, 5 * GIBIBYTE, int(0.86 * GIBIBYTE)
    free = CARD - reserved - context - taken_by_others
    found = used(card, share=(budget - CONTEXT_BYTES) / CARD, free=free, allocated=int(4.8 * GIBIBYTE), reserved=reserved)
    assert found.total == pytest.approx(budget, abs=1)
    assert found.others == (CONTEXT_BYTES if taken_by_others else context)
    assert found.reserved + found.others < found.total
    assert str(found).startswith("of 6.00 GiB, weights and optimizer used 4.80, the pass 0.00, torch's cache 0.20, CUDA and ")


def test_a_card_that_others_filled_before_the_budget_was_used_up(card: dict[str, float]) -> None:
    found = used(card, share=40 / 80, free=GIBIBYTE // 2, allocated=20 * GIBIBYTE, reserved=20 * GIBIBYTE)
    assert found.total == CARD
    assert found.others == int(59.5 * GIBIBYTE)


def test_a_cpu_has_no_card() -> None:
    assert memory_use(torch.device("cpu")) is None
