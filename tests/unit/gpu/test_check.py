"""gpu-check's report, and what makes it an error."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from machines import CARD, card, entry, fake_torch

from llmft_cli import __version__
from llmft_cli.errors import MachineError
from llmft_cli.gpu import check as gpu
from llmft_cli.gpu.check import Disk, Memory, Report
from llmft_cli.gpu.findings import Problem
from llmft_cli.gpu.probes import Nf4Probe
from llmft_cli.progress import Silent

HEALTHY = Nf4Probe(True, "cuda:0", 0.093, 0.092, None)


def report(**fields: Any) -> Report:
    whole = Report([CARD], None, HEALTHY, {}, True, Memory(2, 1), [Disk("/", "runs", 1, 2)], [])
    return replace(whole, **fields)


class TestCheck:
    def test_without_torch(self, monkeypatch: pytest.MonkeyPatch, fake_gputil: Any, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        fake_gputil(entry(load=float("nan")))
        found = gpu.check(Silent(), tmp_path / "cache", tmp_path / "a" / "b" / "runs")
        assert found.nf4_probe == Nf4Probe(False, None, None, None, "torch is not installed")
        assert found.problems == [Problem("torch is not installed", "pip install torch")]
        assert (found.gpus, found.gpu_problem, found.bf16) == ([replace(CARD, load=None)], None, None)
        assert found.versions["cuda"] is None
        assert found.versions["llmft"] == __version__
        assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
        assert 0 < found.memory.available_bytes < found.memory.total_bytes
        assert [disk.purpose for disk in found.disks] == ["cache", "runs"]
        assert found.disks[1].path == str(tmp_path / "a" / "b" / "runs")
        assert 0 < found.disks[1].free_bytes < found.disks[1].total_bytes
        assert json.loads(json.dumps(asdict(found), allow_nan=False))["gpus"][0]["load"] is None

    def test_torch_that_cannot_be_loaded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        what = "torch cannot be imported: libcudart.so.13: cannot open shared object file"
        assert gpu.import_torch() == Problem(what, "pip install --force-reinstall torch")

    def test_gpu_that_torch_sees(self, monkeypatch: pytest.MonkeyPatch, fake_gputil: Any, tmp_path: Path) -> None:
        fake_gputil(entry())
        monkeypatch.setitem(sys.modules, "torch", fake_torch(card()))
        monkeypatch.setattr(gpu, "probe_nf4", lambda torch, device: (replace(HEALTHY, device=device), None))
        found = gpu.check(Silent(), tmp_path, tmp_path)
        assert found.gpus == [replace(CARD, compute_capability="9.0", bf16=True)]
        assert (found.nf4_probe, found.bf16, found.versions["cuda"], found.problems) == (HEALTHY, True, "13.0", [])

    def test_a_machine_without_a_gpu_has_no_problem(
        self, monkeypatch: pytest.MonkeyPatch, nvidia_smi: Any, tmp_path: Path
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", fake_torch(cuda=None))
        monkeypatch.setattr(gpu, "probe_nf4", lambda torch, device: (replace(HEALTHY, device=device), None))
        found = gpu.check(Silent(), tmp_path, tmp_path)
        assert (found.gpus, found.gpu_problem, found.problems) == ([], "nvidia-smi was not found on the PATH", [])
        assert (found.nf4_probe.device, found.bf16) == ("cpu", None)

    def test_live(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        torch = pytest.importorskip("torch")
        found = gpu.check(Silent(), tmp_path, tmp_path)
        assert found.nf4_probe.ok
        assert found.nf4_probe.device == ("cuda:0" if torch.cuda.is_available() else "cpu")
        assert found.versions["torch"] is not None
        assert json.dumps(asdict(found), allow_nan=False)
        assert capfd.readouterr() == ("", "")


class TestRequireGpu:
    def test_passes_with_a_working_gpu(self) -> None:
        gpu.require_gpu(report())

    @pytest.mark.parametrize(
        ("fields", "message", "hint"),
        [
            ({"gpus": [], "gpu_problem": "no card"}, "no card", gpu.NO_GPU_MEND),
            ({"gpus": [], "gpu_problem": "broken", "problems": [Problem("broken", "reboot")]}, "broken", "reboot"),
            ({"problems": [Problem("torch is blind", "unset it"), Problem("other", "")]}, "torch is blind", "unset it"),
        ],
    )
    def test_no_gpu(self, fields: dict[str, Any], message: str, hint: str) -> None:
        with pytest.raises(MachineError) as caught:
            gpu.require_gpu(report(nf4_probe=replace(HEALTHY, device="cpu"), **fields))
        assert (caught.value.message, caught.value.hint) == (f"no usable GPU: {message}", hint)
        assert caught.value.exit_code == 3

    def test_gpu_that_computes_wrong(self) -> None:
        probe = Nf4Probe(False, "cuda:0", 1.0, 1.0, "wrong results")
        with pytest.raises(MachineError, match="no usable GPU: wrong results") as caught:
            gpu.require_gpu(report(nf4_probe=probe, problems=[Problem("x", "y"), Problem("wrong results", "reinstall")]))
        assert caught.value.hint == "reinstall"
