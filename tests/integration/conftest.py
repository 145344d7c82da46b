"""The installed `llmft`, run as users run it, and one run trained for real on the built-in model.

The built-in model is downloaded and converted once per machine, into the user's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmft_cli.builtin_model import cache_dir

LLMFT = Path(sys.executable).with_name("llmft")
SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
# Taken before the tests get a home of their own.
CACHE = cache_dir()
MODEL = "smollm2-135m"
ROWS, EPOCHS = 30, 7

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def llmft() -> Run:
    """The installed command, run in `folder` with a home of its own and no terminal."""

    def run(*arguments: object, folder: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        home = folder / "home"
        home.mkdir(exist_ok=True)
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LLMFT_CACHE": str(CACHE),
            "COLUMNS": "80",
            "LANG": "C.UTF-8",
        }
        command = [str(LLMFT), *map(str, arguments)]
        return subprocess.run(
            command, cwd=folder, env=variables | environment, input=stdin, capture_output=True, text=True, timeout=600
        )

    return run


@pytest.fixture(scope="session")
def llmft_json(llmft: Run) -> Callable[..., dict]:
    """The object that a command prints with --json, having succeeded and printed nothing else on stdout."""

    def run(*arguments: object, **options: object) -> dict:
        done = llmft(*arguments, "--json", **options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("\n") == 1
        result = json.loads(done.stdout)
        assert result["ok"] is True
        assert result["command"] == arguments[0]
        return result

    return run


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `chat.jsonl`, the first single-turn rows of the sample data, and a run `runs/brindle` trained on them."""
    folder = tmp_path_factory.mktemp("workspace")
    rows = [line for line in (SAMPLE_DATA / "chat.jsonl").read_text().splitlines() if len(json.loads(line)["messages"]) == 2]
    (folder / "chat.jsonl").write_text("\n".join(rows[:ROWS]) + "\n")
    return folder


@pytest.fixture(scope="session")
def prepared(llmft_json: Callable[..., dict], workspace: Path) -> dict:
    """What `prepare --json` said of `runs/brindle`."""
    flags = ("--run", "runs/brindle", "--model", MODEL, "--max-seq-length", 256, "--val-size", 4)
    return llmft_json("prepare", "chat.jsonl", *flags, folder=workspace)


@pytest.fixture(scope="session")
def trained(llmft_json: Callable[..., dict], workspace: Path, prepared: dict) -> dict:
    """What `train --json` said of `runs/brindle`: a few minutes' worth of NF4 training in one."""
    flags = ("--batch-size", 1, "--gradient-accumulation-steps", 1, "--learning-rate", 3e-3, "--num-epochs", EPOCHS)
    return llmft_json("train", "runs/brindle", *flags, folder=workspace)


@pytest.fixture(scope="session")
def builtin_model_dir(trained: dict) -> Path:
    """The built-in model's plain directory, which training has put into the cache."""
    return next(path for path in CACHE.glob("smollm2-135m-*") if path.is_dir())
