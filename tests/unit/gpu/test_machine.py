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
from llmft_cli.gpu.machine import Disk, Hub, check_hub, disk_problem, measure_disk

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
    ("disk", "what", "mend"),
    [
        (Disk("/data/runs", "runs", 2**30 - 1, 2**40, True), ("runs", "/data/runs", "1023.9 MiB"), ("space", "--run")),
        (
            Disk("/home/me/.cache/llmft", "cache", 0, 2**40, True),
            ("cache", "/home/me/.cache/llmft", "0 B"),
            ("space", "LLMFT_CACHE"),
        ),
        (Disk("/mnt/hub", "downloads", 0, 0, False), ("downloads", "/mnt/hub", "writable"), ("permissions", "HF_HOME")),
    ],
)
def test_a_disk_that_is_a_problem(disk: Disk, what: tuple[str, ...], mend: tuple[str, ...]) -> None:
    problem = disk_problem(disk)
    assert problem is not None
    assert [part for part in what if part not in problem.what] == []
    assert [part for part in mend if part not in problem.mend] == []


def test_a_disk_that_is_no_problem() -> None:
    assert disk_problem(DISK) is None


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert check_hub() == Hub(token=True, offline=True, reachable=False)
    assert "secret" not in repr(check_hub())


def test_the_hub_without_an_account(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    monkeypatch.setattr(machine, "hub_is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert check_hub() == Hub(token=False, offline=False, reachable=True)


def test_a_dns_lookup_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    """A name server that does not answer blocks the lookup for up to a minute, whatever the request's timeout."""
    monkeypatch.setattr(machine, "HUB_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: time.sleep(20))
    started = time.monotonic()
    assert not check_hub().reachable
    assert time.monotonic() - started < 10
