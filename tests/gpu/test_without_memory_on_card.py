"""On an NVIDIA GPU that another process holds: who it is. Run by hand: pytest -m gpu tests/gpu

The last file by its name, because a card with nothing left may take the driver with it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from programs import GpuCheck, Start

pytestmark = pytest.mark.gpu

# Takes the card in ever smaller pieces until no more than so many bytes are left of it, and holds it until its input ends.
HOLD = """
import sys, torch
left, size, held = int(sys.argv[1]), 2**32, []
while size >= 2**21:
    if torch.cuda.mem_get_info()[0] - size < left:
        size //= 2
        continue
    try: held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError: size //= 2
print("held", flush=True)
sys.stdin.read()
"""
# CUDA's context fits into that, and the products that are tried do not.
TOO_LITTLE_BYTES = 3 * 2**28


@pytest.fixture
def hold_all_but(start: Start) -> Callable[[int], int]:
    """Start a process that takes all GPU memory except this many bytes; returns its pid."""

    def hold(left_bytes: int) -> int:
        holder = start([sys.executable, "-c", HOLD, str(left_bytes)])
        assert holder.says(holder.out) == "held\n", holder.err.said()
        return holder.pid

    return hold


def test_a_card_that_is_held_by_another_process(hold_all_but: Callable[[int], int], gpu_check: GpuCheck) -> None:
    assert_full(hold_all_but(TOO_LITTLE_BYTES), json.loads(gpu_check("--json").stdout))


def test_a_card_with_nothing_left(hold_all_but: Callable[[int], int], gpu_check: GpuCheck) -> None:
    """Not even a CUDA context fits."""
    assert_full(hold_all_but(0), json.loads(gpu_check("--json").stdout))


def assert_full(holder: int, report: dict[str, Any]) -> None:
    """The full GPU is the only problem, and the process that uses it is named."""
    [problem] = [problem["what"] for problem in report["problems"]]
    # The largest holder first; this process may have opened the card as well.
    assert re.match(rf"GPU 0 is fully used by: python[\d.]* \(pid {holder}, [\d.]+ GiB\)", problem), problem
    # Where CUDA finds no room to open the card, it is the CPU that is tried.
    assert not any(probe["ok"] for probe in report["probes"] if probe["device"] != "cpu")
