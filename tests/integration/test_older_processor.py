"""Commands on a processor without AVX-512 and bf16 instructions: this one, kept from them where it has them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import CACHE

CAPS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
# bitsandbytes has no variable for it, but asks one function when a layer is made.
WITHOUT_AVX512 = """
import sys
from llmft_cli.base import libraries
libraries.configure_libraries()
libraries.import_bitsandbytes().nn.modules.has_avx512bf16 = lambda: False
from llmft_cli.cli.app import main
main()
"""
# Each library says with its first product what it computes with, those that are told to.
TOLD = """
import torch
from llmft_cli.base import libraries
from llmft_cli.settings import compute_types
bitsandbytes = libraries.import_bitsandbytes()
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
print(torch.backends.cpu.get_cpu_capability(), compute_types.best_type(torch.device("cpu")))
print(bitsandbytes.nn.Linear4bit(64, 64).support_avx512bf16_for_cpu)
matrix = torch.ones(64, 64)
matrix @ matrix
torch.nn.functional.linear(matrix.bfloat16(), matrix.bfloat16())
"""


def capped(program: str, *arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "LLMFT_CACHE": str(CACHE), "LANG": "C.UTF-8"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=variables | CAPS | environment, capture_output=True, text=True, timeout=3000)


def result(*arguments: object, folder: Path) -> dict:
    done = capped(WITHOUT_AVX512, *arguments, "--json", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_every_library_is_kept_from_newer_instructions(tmp_path: Path) -> None:
    done = capped(TOLD, folder=tmp_path, ONEDNN_VERBOSE="1", MKL_VERBOSE="1")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "AVX2 fp32" in lines
    assert "False" in lines
    # MKL tells the instructions on Intel's processors only, oneDNN where torch asks it for the product.
    assert any(line.startswith("MKL_VERBOSE") for line in lines)
    assert not [line for line in lines if "AVX-512" in line or "AVX512" in line.upper().replace("_", "")], done.stdout


def test_training_and_chat(workspace: Path, untrained: Path, trained: dict, tmp_path: Path) -> None:
    """The demo's model, in fp32, and what `trained` had as its first loss, before any update."""
    run = shutil.copytree(untrained, tmp_path / "run")
    steps = ("--batch-size", 1, "--gradient-accumulation-steps", 1, "--learning-rate", 3e-3, "--max-steps", 3)
    training = result("train", "run", *steps, folder=tmp_path)
    assert training["plan"]["compute_dtype"] == "float32"
    assert training["plan"]["fast"] is True
    assert first_loss(run) == pytest.approx(first_loss(workspace / "runs/brindle"), rel=0.01)
    answer = result("chat", "run", "--prompt", "What does an amber light mean?", "--max-new-tokens", 8, folder=tmp_path)
    assert 0 < answer["tokens"] <= 8
    assert answer["reply"]


def first_loss(run: Path) -> float:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    loss: float = next(row["loss"] for row in rows if "loss" in row)
    return loss
