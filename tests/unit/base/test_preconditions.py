"""Where commands that load a model refuse to."""

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
    assert caught.value.hint == "start it without torchrun: `llmft train ...`; where the system sets WORLD_SIZE, unset it"


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
            "`llmft train` needs Linux: macOS has no CUDA, and computing on its CPU is untested",
            "use a Linux machine or container; runs prepared here can be copied there",
        ),
        (
            "win32",
            "`llmft train` needs Linux: Triton, which compiles the GPU kernels, is not released for Windows, "
            "and doing without it is untested",
            "use WSL 2, a container or a Linux machine; runs prepared here can be copied there",
        ),
    ],
)
def test_other_platforms(platform: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "sys", SimpleNamespace(platform=platform))
    with pytest.raises(MachineError) as caught:
        check_platform("train")
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "sys", SimpleNamespace(platform="linux"))
    check_platform("train")
