"""Rates are the work over the median time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmft_cli.gpu import rates


def seconds(*durations: float) -> Any:
    """A fake clock that measures these durations, one after the other."""
    left = list(durations)

    def timed(torch: Any, device: str, action: Any, repeats: int) -> list[float]:
        for _ in range(repeats):
            action()
        return [left.pop(0) for _ in range(repeats)]

    return timed


def test_the_first_run_does_not_count_and_the_median_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "cpu_seconds", seconds(9.0, 0.02, 0.02, 0.5, 0.02, 0.01, 0.03))
    calls: list[int] = []
    assert rates.median_seconds(None, "cpu", lambda: calls.append(1)) == 0.02
    assert len(calls) == 1 + 1 + 5


@pytest.mark.parametrize(("once", "repeats"), [(1e-6, rates.MOST_REPEATS), (5.0, 1)])
def test_repeats_are_bounded(monkeypatch: pytest.MonkeyPatch, once: float, repeats: int) -> None:
    monkeypatch.setattr(rates, "cuda_seconds", seconds(9.0, *[once] * (1 + repeats)))
    assert rates.median_seconds(None, "cuda:1", lambda: None) == once


@pytest.mark.parametrize(("has_bf16", "bf16_size"), [(True, 512), (False, 256)])
def test_what_is_counted(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, bf16_size: int) -> None:
    """The product is smaller in a type without CPU instructions: size 512 would take up to a second."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(rates, "is_slow", lambda device, name: name == "bf16" and not has_bf16)
    monkeypatch.setattr(rates, "median_seconds", lambda torch, device, action: (action(), 0.5)[1])
    assert rates.flops_per_second(torch, "cpu", "bf16") == 2 * bf16_size**3 / 0.5
    assert rates.bf16_flops_per_second(torch, "cpu") == 2 * bf16_size**3 / 0.5
    assert rates.flops_per_second(torch, "cpu", "fp32") == 2 * 512**3 / 0.5
    assert rates.bandwidth_bytes_per_second(torch, "cpu") == 2 * 2**26 / 0.5


@pytest.mark.parametrize(("name", "size"), [("bf16", 8192), ("fp16", 8192), ("fp32", 4096)])
def test_products_on_a_gpu_fill_it_and_do_not_take_long(name: str, size: int) -> None:
    assert rates.matrix_size(SimpleNamespace(type="cuda"), name) == size


def test_a_real_clock() -> None:
    durations = rates.cpu_seconds(None, "cpu", lambda: None, 3)
    assert len(durations) == 3
    assert all(0 <= duration < 0.1 for duration in durations)
