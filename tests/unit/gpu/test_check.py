"""gpu-check's report, and what makes it an error."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from machines import CARD, LINE, UUID, WHOLE, XML, card, fake_torch

from llmft_cli import __version__
from llmft_cli.base.errors import MachineError
from llmft_cli.base.reporter import Silent
from llmft_cli.gpu import check as gpu
from llmft_cli.gpu.check import Nf4Probe, Report, check
from llmft_cli.gpu.gpus import DRIVER_HANGS, full_gpu_problem
from llmft_cli.gpu.machine import Cpu, Disk, Hub, Memory
from llmft_cli.gpu.probes import Probe
from llmft_cli.gpu.problem import Problem

HEALTHY = Nf4Probe(True, "cuda:0", 0.093, 0.092, None)
PROBE = Probe("cuda:0", "bf16", True, True, 0.093, 0.092, 0.011, 7e14, 7e14, 7e14, 3e12, None)
NOTHING = Probe("cuda:0", "bf16", False, False, None, None, None, None, None, None, None, None)
CPU = Cpu("AVX2", bf16=False, threads=2)


def report(**fields: Any) -> Report:
    disks = [Disk("/", "runs", 1, 2, True)]
    hub = Hub(token=False, offline=True, reachable=False)
    whole = Report([CARD], None, HEALTHY, [PROBE], {}, True, True, CPU, Memory(2, 1), disks, hub, "no account", [], [])
    return replace(whole, **fields)


@pytest.fixture
def torch_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that installs a fake torch; the given values replace those of a healthy probe of each device."""

    def install(torch: Any, *found: Problem, **fields: Any) -> None:
        def probe(torch: Any, device: str, *others: Any) -> Any:
            return replace(PROBE, device=device, **fields), list(found)

        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(gpu, "load_bitsandbytes", lambda torch, on_gpu: (None, None))
        monkeypatch.setattr(gpu, "probe", probe)

    return install


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that installs a fake torch; returns a list to which each trial adds the device that it opens."""

    def install(torch: Any) -> list[str]:
        opened: list[str] = []
        results = {"nf4_errors": (0.09, 0.09), "int8_error": 0.01, "flops_per_second": 7e14}
        for name, result in {**results, "bandwidth_bytes_per_second": 3e12}.items():

            def trial(torch: Any, device: str, *others: Any, result: Any = result) -> Any:
                opened.append(device)
                return result

            monkeypatch.setattr(f"llmft_cli.gpu.probes.{name}", trial)
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(gpu, "load_bitsandbytes", lambda torch, on_gpu: (None, None))
        return opened

    return install


class TestCheck:
    def test_without_torch(self, monkeypatch: pytest.MonkeyPatch, nvidia_smi: Any, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        # Read from the environment when the library is imported, which may have been before this test.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        nvidia_smi(LINE.replace(" 25,", " [N/A],"), xml=XML)
        found = check(Silent(), tmp_path / "cache", tmp_path / "a" / "b" / "runs")
        assert found.nf4_probe == Nf4Probe(False, None, None, None, "torch is not installed")
        assert found.problems == [Problem("torch is not installed", "pip install torch")]
        assert (found.gpus, found.gpu_problem, found.bf16, found.probes) == ([replace(WHOLE, load=None)], None, None, [])
        assert (found.versions["cuda"], found.versions["bitsandbytes_cuda"]) == (None, None)
        assert (found.versions["driver"], found.versions["driver_cuda"]) == ("570.86.15", "12.8")
        assert found.versions["llmft"] == __version__
        assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
        assert 0 < found.memory.available_bytes < found.memory.total_bytes
        assert [disk.purpose for disk in found.disks] == ["cache", "downloads", "runs"]
        assert found.disks[2].path == str(tmp_path / "a" / "b" / "runs")
        assert 0 < found.disks[2].free_bytes < found.disks[2].total_bytes
        assert (found.hub, found.wandb) == (Hub(token=False, offline=True, reachable=False), "no account")
        assert json.loads(json.dumps(asdict(found), allow_nan=False))["gpus"][0]["load"] is None

    def test_gpus_that_torch_sees(self, torch_with: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        torch_with(fake_torch(card("other", 8, 6), card()))
        nvidia_smi(f"{LINE}\n{LINE.replace('0, ', '1, ', 1).replace(UUID, 'GPU-other')}", xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        first = replace(WHOLE, compute_capability="9.0", bf16=True, device="cuda:1", lacks=[])
        second = replace(CARD, index=1, uuid="GPU-other", compute_capability="8.6", bf16=True, device="cuda:0", lacks=[])
        assert found.gpus == [first, second]
        assert found.probes == [PROBE, replace(PROBE, device="cuda:1")]
        assert (found.nf4_probe, found.bf16, found.versions["cuda"], found.problems) == (HEALTHY, True, "13.0", [])
        assert (found.versions_match, found.cpu, found.notes) == (True, CPU, [])

    def test_a_gpu_without_kernels_is_not_tried_and_another_is(self, trials: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        """A kernel that is missing from bitsandbytes' library aborts the process."""
        opened = trials(fake_torch(card("other"), card(major=7, minor=0)))
        nvidia_smi(f"{LINE}\n{LINE.replace('0, ', '1, ', 1).replace(UUID, 'GPU-other')}", xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        assert set(opened) == {"cuda:0"}
        assert [(probe.device, probe.ok, probe.compute_dtype) for probe in found.probes] == [
            ("cuda:0", True, "bf16"),
            ("cuda:1", False, "fp16"),
        ]
        assert found.gpus[0].lacks == ["int8", "bf16", "FlashAttention"]
        assert [problem.what for problem in found.problems] == [found.probes[1].problem]
        assert found.problems[0].mend == "pip install torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126"
        gpu.require_gpu(found)

    def test_require_gpu_fails_with_a_gpu_that_is_too_old(self, trials: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        opened = trials(fake_torch(card(major=5, minor=2), architectures=["sm_50"]))
        nvidia_smi(LINE, xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        assert opened == []
        with pytest.raises(MachineError, match="is too old: NF4 needs compute capability") as caught:
            gpu.require_gpu(found)
        assert caught.value.hint == found.problems[0].mend

    def test_a_full_gpu_is_reported_once(self, torch_with: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        """Both nvidia-smi and the probe that fails there report it."""
        full = replace(WHOLE, memory_free_bytes=900 * 2**20)
        torch_with(fake_torch(card()), full_gpu_problem(full), ok=False, nf4_ok=False, problem=full_gpu_problem(full).what)
        nvidia_smi(LINE.replace("77463", "900"), xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        assert found.problems == [full_gpu_problem(full)]
        assert found.problems[0].what == "GPU 0 is fully used by: python3 (pid 4711, 3 GiB), a process (pid 812)"
        with pytest.raises(MachineError, match="no usable GPU: GPU 0 is fully used by: python3") as caught:
            gpu.require_gpu(found)
        assert caught.value.hint == found.problems[0].mend

    def test_a_gpu_without_room_for_a_context_is_not_opened(self, trials: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        """CUDA may hang on it, or take what another job needs."""
        opened = trials(fake_torch(card()))
        nvidia_smi(LINE.replace("77463", "500"), xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        assert opened == []
        what = "GPU 0 is fully used by: python3 (pid 4711, 3 GiB), a process (pid 812)"
        assert [problem.what for problem in found.problems] == [what]
        assert found.probes == [replace(NOTHING, problem=what)]
        # What torch reports without opening the GPU is still there.
        assert (found.gpus[0].device, found.gpus[0].compute_capability, found.bf16) == ("cuda:0", "9.0", True)
        assert (found.nf4_probe, found.versions_match) == (Nf4Probe(False, "cuda:0", None, None, what), True)
        with pytest.raises(MachineError, match="no usable GPU: GPU 0 is fully used by: python3") as caught:
            gpu.require_gpu(found)
        assert (caught.value.exit_code, caught.value.hint) == (3, found.problems[0].mend)

    @pytest.mark.parametrize("full_first", [True, False])
    def test_other_gpus_are_opened(self, trials: Any, nvidia_smi: Any, tmp_path: Path, full_first: bool) -> None:
        """In any order of CUDA_VISIBLE_DEVICES: nvidia-smi's first GPU is the full one."""
        cards = [card(), card("other")] if full_first else [card("other"), card()]
        opened = trials(fake_torch(*cards))
        other = LINE.replace("0, ", "1, ", 1).replace(UUID, "GPU-other")
        nvidia_smi(f"{LINE.replace('77463', '0')}\n{other}", xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        full, free = ("cuda:0", "cuda:1") if full_first else ("cuda:1", "cuda:0")
        assert [gpu.device for gpu in found.gpus] == [full, free]
        assert set(opened) == {free}
        assert {probe.device: probe.ok for probe in found.probes} == {full: False, free: True}
        assert len(found.problems) == 1

    def test_a_slice_of_a_full_gpu_is_opened(self, trials: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        """A MIG slice has its own UUID, and nvidia-smi's list does not show its memory."""
        opened = trials(fake_torch(card("slice")))
        nvidia_smi(LINE.replace("77463", "0"), xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        assert set(opened) == {"cuda:0"}
        assert ([probe.ok for probe in found.probes], found.problems) == ([True], [])

    def test_a_gpu_that_torch_cannot_look_at(self, torch_with: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        def refuse(index: int) -> None:
            raise RuntimeError("CUDA error: out of memory")

        torch = fake_torch(card())
        torch.cuda.get_device_properties = refuse
        torch_with(torch)
        nvidia_smi(LINE.replace("77463", "12"), xml=XML)
        found = check(Silent(), tmp_path, tmp_path)
        assert found.problems == [full_gpu_problem(replace(WHOLE, memory_free_bytes=12 * 2**20))]
        with pytest.raises(MachineError, match="no usable GPU: GPU 0 is fully used by: python3"):
            gpu.require_gpu(found)

    def test_a_full_gpu_that_is_hidden_from_torch_is_no_problem(self, torch_with: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        torch_with(fake_torch(card("other")))
        nvidia_smi(LINE.replace("77463", "12"), xml=XML)
        assert check(Silent(), tmp_path, tmp_path).problems == []

    def test_a_driver_that_hangs_is_not_touched(
        self, torch_with: Any, monkeypatch: pytest.MonkeyPatch, nvidia_smi: Any, tmp_path: Path
    ) -> None:
        """torch would hang like nvidia-smi, and could not be interrupted."""
        torch = fake_torch(card())
        torch.cuda = None
        torch_with(torch)
        monkeypatch.setattr("llmft_cli.gpu.gpus.TIME_LIMIT_SECONDS", 0.2)
        monkeypatch.setattr("llmft_cli.gpu.nvidia_smi.TIME_LIMIT_SECONDS", 0.2)
        nvidia_smi(LINE, before="exec /bin/sleep 5")
        found = check(Silent(), tmp_path, tmp_path)
        assert (found.gpus, found.gpu_problem, found.problems, found.probes) == ([], DRIVER_HANGS.what, [DRIVER_HANGS], [])
        assert found.nf4_probe == Nf4Probe(False, None, None, None, DRIVER_HANGS.what)

    def test_a_machine_without_a_gpu_has_no_problem(self, torch_with: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        torch_with(fake_torch(cuda=None))
        found = check(Silent(), tmp_path, tmp_path)
        assert (found.gpus, found.gpu_problem, found.problems) == ([], "nvidia-smi was not found on the PATH", [])
        assert (found.nf4_probe.device, found.bf16, found.versions_match) == ("cpu", None, None)
        assert (found.cpu, found.notes) == (CPU, [])

    def test_a_build_for_cuda_on_a_machine_without_a_gpu_is_noted(
        self, torch_with: Any, nvidia_smi: Any, tmp_path: Path
    ) -> None:
        torch_with(fake_torch(cuda="13.0"))
        found = check(Silent(), tmp_path, tmp_path)
        assert found.problems == []
        (note,) = found.notes
        assert note.what.startswith("torch 2.13.0 ")
        assert note.mend.endswith("pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu")

    def test_where_the_driver_fails_the_build_for_cuda_is_right(self, torch_with: Any, nvidia_smi: Any, tmp_path: Path) -> None:
        torch_with(fake_torch(cuda="13.0"))
        nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", code=9)
        found = check(Silent(), tmp_path, tmp_path)
        assert (len(found.problems), found.notes) == (1, [])

    def test_live(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        torch = pytest.importorskip("torch")
        found = check(Silent(), tmp_path, tmp_path)
        assert found.nf4_probe.ok
        assert found.nf4_probe.device == ("cuda:0" if torch.cuda.is_available() else "cpu")
        assert all(probe.ok for probe in found.probes)
        assert found.versions["torch"] is not None
        assert json.dumps(asdict(found), allow_nan=False)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    def test_nothing_waits_for_nvidia_smi_while_torch_is_imported(
        self, monkeypatch: pytest.MonkeyPatch, nvidia_smi: Any, tmp_path: Path
    ) -> None:
        """Without the persistence daemon, nvidia-smi takes a second or more."""

        def slow_import() -> Problem:
            time.sleep(5)
            return Problem("no torch", "")

        monkeypatch.setattr(gpu, "import_torch", slow_import)
        nvidia_smi(LINE, xml=XML, before="/bin/sleep 2.25")
        started = time.monotonic()
        assert check(Silent(), tmp_path, tmp_path).gpus == [WHOLE]
        assert time.monotonic() - started < 8.5


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

    def test_a_gpu_that_others_use_fully(self) -> None:
        """The probe's small products may still fit into the last GiB."""
        full = replace(WHOLE, memory_free_bytes=900 * 2**20, device="cuda:0")
        busy = report(gpus=[full, CARD], problems=[Problem("other", ""), full_gpu_problem(full)])
        with pytest.raises(MachineError, match="no usable GPU: GPU 0 is fully used by: python3") as caught:
            gpu.require_gpu(busy)
        assert caught.value.hint == full_gpu_problem(full).mend
        gpu.require_gpu(report(gpus=[replace(full, device="cuda:1"), replace(CARD, device="cuda:0")]))

    def test_gpu_that_computes_wrong(self) -> None:
        probe = Nf4Probe(False, "cuda:0", 1.0, 1.0, "wrong results")
        with pytest.raises(MachineError, match="no usable GPU: wrong results") as caught:
            gpu.require_gpu(report(nf4_probe=probe, problems=[Problem("x", "y"), Problem("wrong results", "reinstall")]))
        assert caught.value.hint == "reinstall"
