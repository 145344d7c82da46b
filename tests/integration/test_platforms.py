"""What works on macOS and Windows, tried on Linux without what only Unix has."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from .conftest import LLMFT

# Read by Python at its start: tells llmft where it is, and takes from its code, not from the libraries', what Windows lacks.
SITE = """
import builtins, os
from types import SimpleNamespace

MISSING = ("fcntl", "resource", "termios", "tty", "pwd", "grp", "triton")
plain_import = builtins.__import__

def import_elsewhere(name, globals=None, *others, **named):
    if name in MISSING and (globals or {}).get("__name__", "").startswith("llmft_cli"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return plain_import(name, globals, *others, **named)

builtins.__import__ = import_elsewhere
from llmft_cli.base import preconditions
preconditions.sys = SimpleNamespace(platform=os.environ["LLMFT_TEST_PLATFORM"])
"""


@pytest.fixture(params=["darwin", "win32"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a platform that commands believe to be on."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("LLMFT_TEST_PLATFORM", request.param)
    return str(request.param)


def llmft(folder: Path, *arguments: object) -> tuple[int, dict]:
    """Exit code and object of a command with --json."""
    command = [str(LLMFT), *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def test_prepare(elsewhere: str, tiny_data: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    code, shown = llmft(tmp_path, "prepare", tiny_data / "rows.jsonl", "--run", "run", "--model", tiny_model_dir)
    assert (code, shown["rows"]["kept"]) == (0, 40)
    assert {"run.json", "data", "tokenizer"} <= {path.name for path in (tmp_path / "run").iterdir()}
    code, shown = llmft(tmp_path, "train", "run")
    assert (code, shown["error"]["kind"]) == (3, "environment")
    assert shown["error"]["message"].startswith("`llmft train` needs Linux: ")


def test_gpu_check(elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code, shown = llmft(tmp_path, "gpu-check")
    assert (code, shown["gpus"], shown["nf4_probe"]["ok"]) == (0, [], True)
    assert [problem["what"].split(":")[0] for problem in shown["problems"]] == ["training needs Linux"]


@pytest.mark.parametrize("elsewhere", ["win32"], indirect=True)
def test_whether_a_training_fits(elsewhere: str, tmp_path: Path) -> None:
    small = ("--max-seq-length", 64, "--batch-size", 1, "--gradient-accumulation-steps", 1)
    code, shown = llmft(tmp_path, "gpu-check", "--model", "smollm2-135m", "--vram", "8GiB", *small)
    assert (code, shown["fit"]["fits"]) == (0, True)
