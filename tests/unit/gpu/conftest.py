"""Fake machines with other GPUs or none; also makes the helper module in this folder importable."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fake_gputil(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets what GPUtil answers: its entries, or an error to raise."""
    module: Any = ModuleType("GPUtil")
    monkeypatch.setitem(sys.modules, "GPUtil", module)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")

    def answer(*entries: SimpleNamespace, error: Exception | None = None) -> None:
        def get_gpus() -> list[SimpleNamespace]:
            if error:
                raise error
            return list(entries)

        module.getGPUs = get_gpus

    return answer


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that installs an `nvidia-smi` for the real GPUtil; it prints `output`, or `xml` when called with -q -x."""
    pytest.importorskip("GPUtil")
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(output: str, code: int = 0, xml: str | None = None, before: str = "") -> None:
        (tmp_path / "output").write_text(f"{output}\n")
        (tmp_path / "xml").write_text(f"{output if xml is None else xml}\n")
        program = tmp_path / "nvidia-smi"
        choice = f'case "$*" in "-q -x") /bin/cat {tmp_path}/xml;; *) /bin/cat {tmp_path}/output;; esac'
        program.write_text(f"#!/bin/sh\n{before}\n{choice}\nexit {code}\n")
        program.chmod(0o755)

    return install
