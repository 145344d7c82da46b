"""As many threads compute as cores are free."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

import torch

from llmft_cli.base import cpu_threads
from llmft_cli.base.cpu_threads import allowed_cores, busy_cores, use_free_cores
from llmft_cli.base.reporter import Silent

CPU = torch.device("cpu")


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def eight_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def chosen(
    monkeypatch: pytest.MonkeyPatch, busy: float, allowed: int = 64, device: torch.device = CPU
) -> tuple[int, list[str]]:
    monkeypatch.setattr(cpu_threads, "busy_cores", lambda: busy)
    monkeypatch.setattr(cpu_threads, "allowed_cores", lambda: allowed)
    notes = Notes()
    use_free_cores(device, notes)
    return torch.get_num_threads(), notes.said


@pytest.mark.usefixtures("eight_threads")
@pytest.mark.parametrize(
    ("busy", "allowed", "threads"), [(0.0, 64, 8), (0.4, 64, 8), (0.97, 64, 7), (3.2, 64, 5), (30.0, 64, 1), (0.0, 2, 2)]
)
def test_threads_take_the_cores_that_are_free(busy: float, allowed: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, notes = chosen(monkeypatch, busy, allowed)
    assert found == threads
    shown = (f"computing with {threads} of 8 threads", f"use {busy:.1f} cores", f"may use {allowed} ", "OMP_NUM_THREADS")
    assert len(notes) == (threads < 8)
    assert [part for note in notes for part in shown if part not in note] == []


@pytest.mark.usefixtures("eight_threads")
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert chosen(monkeypatch, 7.0) == (8, [])


@pytest.mark.usefixtures("eight_threads")
def test_nothing_is_changed_where_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 7.0, device=torch.device("cuda", 0)) == (8, [])


def spin() -> None:
    while True:
        pass


def test_a_busy_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum of several samples is compared, so that other load does not matter."""
    monkeypatch.setattr(cpu_threads, "SAMPLING_SECONDS", 0.2)
    process = multiprocessing.get_context("fork").Process(target=spin)
    process.start()
    try:
        time.sleep(0.1)
        assert 0.4 < min(busy_cores() for _ in range(3)) <= (os.cpu_count() or 1) + 0.2
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", os.cpu_count()), ("250000 100000", 2), ("50000 100000", 1), ("", os.cpu_count())]
)
def test_a_limit_of_the_control_group_counts(limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(cpu_threads, "CGROUP_QUOTA", tmp_path / "cpu.max")
    assert allowed_cores() == cores
    monkeypatch.setattr(cpu_threads, "CGROUP_QUOTA", tmp_path / "none")
    assert allowed_cores() == os.cpu_count()
