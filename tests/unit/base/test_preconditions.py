"""Commands that load a model fail early on unsupported platforms and in several processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmft_cli.base import preconditions
from llmft_cli.base.errors import MachineError, UsageError
from llmft_cli.base.preconditions import check_one_process, check_platform


@pytest.mark.parametrize("processes", ["2", "64"])
def test_one_of_several_processes(processes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(UsageError) as caught:
        check_one_process("train")
    assert caught.value.message == f"WORLD_SIZE is {processes}: `llmft train` supports one process only"
    assert [part for part in ("torchrun", "`llmft train ...`", "unset") if part not in caught.value.hint] == []


@pytest.mark.parametrize("processes", [None, "", "1", "0", "two", "-2", "2.5", "²"])
def test_a_single_process(processes: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("WORLD_SIZE", processes)
    check_one_process("train")


@pytest.mark.parametrize(
    ("platform", "message", "hint"),
    [
        (
            "darwin",
            "`llmft train` needs Linux: macOS has no CUDA",
            "use a Linux machine or container",
        ),
        (
            "win32",
            "`llmft train` needs Linux: Triton, ",
            "use WSL 2, a container or a Linux machine",
        ),
    ],
)
def test_other_platforms(platform: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "sys", SimpleNamespace(platform=platform))
    with pytest.raises(MachineError) as caught:
        check_platform("train")
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith(hint)


def test_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "sys", SimpleNamespace(platform="linux"))
    check_platform("train")
