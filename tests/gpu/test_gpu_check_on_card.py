"""On an NVIDIA GPU: gpu-check's measurements. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from programs import GpuCheck

pytestmark = pytest.mark.gpu


def test_a_healthy_card(gpu_check: GpuCheck) -> None:
    done = gpu_check("--json", "--require-gpu")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    gpu, probe = report["gpus"][0], report["probes"][0]
    assert (gpu["device"], probe["device"], probe["ok"]) == ("cuda:0", "cuda:0", True)
    assert 0.087 < probe["nf4_relative_error"] < 0.1
    assert 0.0105 < probe["int8_relative_error"] < 0.0123
    # From the slowest card with bf16 units to several times the fastest of today.
    assert 5e12 < probe["bf16_flops_per_second"] < 1e16
    assert 5e12 < probe["fp16_flops_per_second"] < 1e16
    assert 1e12 < probe["fp32_flops_per_second"] < probe["bf16_flops_per_second"]
    assert (probe["compute_dtype"], gpu["lacks"], report["notes"]) == ("bf16", [], [])
    assert 1e11 < probe["bandwidth_bytes_per_second"] < 5e13
    versions = report["versions"]
    assert versions["cuda"].split(".")[0] == versions["bitsandbytes_cuda"].split(".")[0]
    assert float(versions["driver_cuda"]) >= float(versions["cuda"])


def test_a_bitsandbytes_without_its_library(gpu_check: GpuCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNB_CUDA_VERSION", "999")
    refused = gpu_check("--require-gpu")
    assert refused.returncode == 3
    assert "cannot load a library for CUDA" in refused.stderr
    assert refused.stderr.splitlines()[-1] == "hint: unset BNB_CUDA_VERSION"
