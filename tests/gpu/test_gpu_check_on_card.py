"""On an NVIDIA GPU: what gpu-check measures on the card. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.gpu

# Takes what is left of the card in ever smaller pieces, and holds it until its input ends.
HOLD = """
import sys, torch
held, size = [], 2**32
while size >= 2**21:
    try: held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError: size //= 2
print("held", flush=True)
sys.stdin.read()
"""


def gpu_check(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmft_cli", "gpu-check", *flags], capture_output=True, text=True)


@pytest.fixture
def holder() -> Iterator[int]:
    """The process that holds all memory of the card."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.communicate()


def test_a_healthy_card() -> None:
    report = json.loads(gpu_check("--json", "--require-gpu").stdout)
    assert report["problems"] == []
    gpu, probe = report["gpus"][0], report["probes"][0]
    assert (gpu["device"], probe["device"], probe["ok"]) == ("cuda:0", "cuda:0", True)
    assert 0.087 < probe["nf4_relative_error"] < 0.1
    assert 0.0105 < probe["int8_relative_error"] < 0.0123
    # From the slowest card with bf16 units to several times the fastest of today.
    assert 5e12 < probe["bf16_flops_per_second"] < 1e16
    assert 1e11 < probe["bandwidth_bytes_per_second"] < 5e13
    versions = report["versions"]
    assert versions["cuda"].split(".")[0] == versions["bitsandbytes_cuda"].split(".")[0]
    assert float(versions["driver_cuda"]) >= float(versions["cuda"])


def test_a_full_card(holder: int) -> None:
    refused = gpu_check("--require-gpu")
    assert refused.returncode == 3
    assert "error: no usable GPU: GPU 0 is fully used by: python" in refused.stderr
    assert f"(pid {holder}, " in refused.stderr
    report = json.loads(gpu_check("--json").stdout)
    assert [problem["what"].partition(": ")[0] for problem in report["problems"]] == ["GPU 0 is fully used by"]
    assert not report["probes"][0]["ok"]


def test_a_bitsandbytes_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNB_CUDA_VERSION", "999")
    refused = gpu_check("--require-gpu")
    assert refused.returncode == 3
    assert "cannot load a library for CUDA" in refused.stderr
    assert refused.stderr.splitlines()[-1] == "hint: unset BNB_CUDA_VERSION"
