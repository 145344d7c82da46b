"""Disk space and accounts."""

from __future__ import annotations

import os
import socket
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmft_cli.gpu import machine
from llmft_cli.gpu.machine import Disk, Hub, disk_problem, look_at_hub, measure_disk
from llmft_cli.gpu.problem import Problem

Usage = namedtuple("Usage", "total used free")
DISK = Disk("/data/runs", "runs", 2**30, 2**40, True)


@pytest.mark.parametrize(
    ("limit", "total", "available"),
    [("max", 64, 40), (str(16 * 2**30), 16, 16), (str(50 * 2**30), 50, 40), ("9223372036854771712", 64, 40), (None, 64, 40)],
)
def test_a_container_may_have_less_memory_than_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, total: int, available: int
) -> None:
    if limit:
        (tmp_path / "limit").write_text(f"{limit}\n")
    monkeypatch.setattr(machine, "LIMIT_FILES", (tmp_path / "none", tmp_path / "limit"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64 * 2**30, available=40 * 2**30))
    assert machine.measure_memory() == machine.Memory(total * 2**30, available * 2**30)


def test_a_place_that_does_not_exist_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or Usage(9, 6, 3))
    monkeypatch.chdir(tmp_path)
    assert measure_disk(Path("a/b"), "runs") == Disk(str(tmp_path / "a" / "b"), "runs", 3, 9, True)
    assert asked == [tmp_path]


def test_a_place_that_is_not_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert not measure_disk(tmp_path / "cache", "cache").writable


@pytest.mark.parametrize(
    ("disk", "problem"),
    [
        (DISK, None),
        (
            Disk("/data/runs", "runs", 2**30 - 1, 2**40, True),
            Problem(
                "the disk has 1023.9 MiB free where runs will be (/data/runs)",
                "free some space, or keep runs elsewhere (--run)",
            ),
        ),
        (
            Disk("/home/me/.cache/llmft", "cache", 0, 2**40, True),
            Problem(
                "the disk has 0 B free where the cache will be (/home/me/.cache/llmft)",
                "free some space, or set LLMFT_CACHE to a folder elsewhere",
            ),
        ),
        (
            Disk("/mnt/hub", "downloads", 0, 0, False),
            Problem(
                "cannot write where downloads will be (/mnt/hub)",
                "fix its permissions, or set HF_HOME to a folder elsewhere",
            ),
        ),
    ],
)
def test_what_is_a_problem(disk: Disk, problem: Problem | None) -> None:
    assert disk_problem(disk) == problem


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_the_hub_where_it_may_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert look_at_hub() == Hub(token=True, offline=True, reachable=False)
    assert "secret" not in repr(look_at_hub())


def test_the_hub_without_an_account(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    monkeypatch.setattr(machine, "hub_is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert look_at_hub() == Hub(token=False, offline=False, reachable=True)


def test_a_look_up_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    """A name server that does not answer holds the look-up for up to a minute, whatever the time limit of the request."""
    monkeypatch.setattr(machine, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: time.sleep(20))
    started = time.monotonic()
    assert not look_at_hub().reachable
    assert time.monotonic() - started < 10
