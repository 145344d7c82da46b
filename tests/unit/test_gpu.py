"""gpu-check: what nvidia-smi, torch and bitsandbytes say, and what they say when they are broken."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from statistics import NormalDist
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmft_cli import __version__, gpu
from llmft_cli.errors import MachineError
from llmft_cli.gpu import Disk, Gpu, Memory, Nf4Probe, Problem, Report
from llmft_cli.progress import Silent

UUID = "GPU-7f0d2c2e-94b2-6f8a-1c39-5be6a1d2f0aa"
LINE = f"0, {UUID}, 25, 81559, 4096, 77463, 570.86.15, NVIDIA H100 80GB HBM3, 1650223, Disabled, Disabled, 41"
CARD = Gpu(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    uuid=UUID,
    memory_total_bytes=81559 * 1024**2,
    memory_free_bytes=77463 * 1024**2,
    load=0.25,
    temperature_celsius=41.0,
    driver="570.86.15",
)
HEALTHY = Nf4Probe(True, "cuda:0", 0.093, 0.092, None)


def entry(**fields: Any) -> SimpleNamespace:
    """What GPUtil makes of LINE."""
    known = {"id": 0, "name": CARD.name, "uuid": UUID, "memoryTotal": 81559.0, "memoryFree": 77463.0}
    return SimpleNamespace(**(known | {"load": 0.25, "temperature": 41.0, "driver": CARD.driver} | fields))


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
    """A function that puts a program `nvidia-smi` with a given output before the real GPUtil."""
    pytest.importorskip("GPUtil")
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(output: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"{output}\"\nexit {code}\n")
        program.chmod(0o755)

    return install


def fake_torch(*cards: SimpleNamespace, cuda: str | None = "13.0", complaint: str = "") -> Any:
    def is_available() -> bool:
        if complaint:
            warnings.warn(complaint, stacklevel=2)
        return bool(cards)

    functions = SimpleNamespace(
        is_available=is_available, device_count=lambda: len(cards), get_device_properties=lambda index: cards[index]
    )
    return SimpleNamespace(
        cuda=functions, version=SimpleNamespace(cuda=cuda), __version__="2.13.0", OutOfMemoryError=FakeOutOfMemory
    )


class FakeOutOfMemory(RuntimeError):
    pass


def card(uuid: str = UUID.removeprefix("GPU-"), major: int = 9, minor: int = 0) -> SimpleNamespace:
    return SimpleNamespace(uuid=uuid, major=major, minor=minor)


def report(**fields: Any) -> Report:
    whole = Report([CARD], None, HEALTHY, {}, True, Memory(2, 1), [Disk("/", "runs", 1, 2)], [])
    return replace(whole, **fields)


class TestListing:
    def test_fields(self, fake_gputil: Any) -> None:
        fake_gputil(entry())
        assert gpu.list_gpus() == ([CARD], None)

    def test_what_a_card_does_not_tell_is_none(self, fake_gputil: Any) -> None:
        nan = float("nan")
        fake_gputil(entry(load=nan, temperature=nan, memoryTotal=nan, memoryFree=nan))
        mute = replace(CARD, load=None, temperature_celsius=None, memory_total_bytes=None, memory_free_bytes=None)
        assert gpu.list_gpus() == ([mute], None)

    @pytest.mark.parametrize("error", [ValueError("odd"), IndexError("odd"), ZeroDivisionError("odd")])
    def test_gputil_raises(self, fake_gputil: Any, error: Exception) -> None:
        fake_gputil(error=error)
        assert gpu.list_gpus() == ([], Problem("nvidia-smi: odd", gpu.DRIVER_MEND))

    def test_empty(self, fake_gputil: Any) -> None:
        fake_gputil()
        assert gpu.list_gpus() == ([], Problem("nvidia-smi lists no GPU", ""))

    @pytest.mark.parametrize(("missing", "package"), [("distutils", "setuptools"), ("GPUtil", "GPUtil")])
    def test_not_importable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, package: str) -> None:
        (tmp_path / "GPUtil.py").write_text(f"raise ModuleNotFoundError(\"No module named '{missing}'\", name='{missing}')")
        monkeypatch.delitem(sys.modules, "GPUtil", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        gpus, problem = gpu.list_gpus()
        assert gpus == []
        assert problem is not None
        assert problem.what.endswith(f"No module named '{missing}'")
        assert problem.mend == f"pip install {package}"


class TestListingThroughGputil:
    def test_two_cards(self, nvidia_smi: Any) -> None:
        other = "1, GPU-2, [N/A], [N/A], [N/A], [N/A], 570.86.15, NVIDIA GB10, [N/A], Disabled, Disabled, [N/A]"
        nvidia_smi(f"{LINE}\n{other}")
        assert gpu.list_gpus() == ([CARD, Gpu(1, "NVIDIA GB10", "GPU-2", None, None, None, None, "570.86.15")], None)

    def test_no_devices(self, nvidia_smi: Any) -> None:
        nvidia_smi("No devices were found", code=6)
        assert gpu.list_gpus() == ([], Problem("nvidia-smi: No devices were found", ""))

    def test_driver_does_not_answer(self, nvidia_smi: Any) -> None:
        said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
        nvidia_smi(said, code=9)
        assert gpu.list_gpus() == ([], Problem(f"nvidia-smi: {said}", gpu.DRIVER_MEND))

    @pytest.mark.parametrize("output", ["0, GPU-1", LINE.replace("81559", "0"), "garbage"])
    def test_odd_output(self, nvidia_smi: Any, output: str) -> None:
        nvidia_smi(output)
        gpus, problem = gpu.list_gpus()
        assert gpus == []
        assert problem is not None
        assert problem.mend == gpu.DRIVER_MEND

    def test_no_nvidia_smi(self, nvidia_smi: Any) -> None:
        assert gpu.list_gpus() == ([], Problem("nvidia-smi was not found on the PATH", ""))


class TestTorchsView:
    def test_cards_are_matched_by_uuid(self) -> None:
        hidden = replace(CARD, index=0, uuid="GPU-hidden")
        torch = fake_torch(card(uuid="old", major=7, minor=5), card())
        gpus, bf16, problem = gpu.view_through_torch(torch, [hidden, CARD, replace(CARD, uuid="GPU-old")])
        assert [(item.compute_capability, item.bf16) for item in gpus] == [(None, None), ("9.0", True), ("7.5", False)]
        assert bf16 is False
        assert problem is None

    def test_no_gpu_is_no_problem(self) -> None:
        assert gpu.view_through_torch(fake_torch(cuda=None), []) == ([], None, None)

    @pytest.mark.parametrize(
        ("visible", "torch", "what", "mend"),
        [
            (None, fake_torch(cuda=None), ": torch 2.13.0 has no CUDA", "install a CUDA build of torch: https://pytorch.org"),
            ("", fake_torch(), ": CUDA_VISIBLE_DEVICES is ''", "unset CUDA_VISIBLE_DEVICES"),
            (
                "0",
                fake_torch(complaint="CUDA initialization: The NVIDIA driver on your system is too old"),
                ": CUDA initialization: The NVIDIA driver on your system is too old",
                "update the NVIDIA driver (570.86.15), or install a torch for an older CUDA than 13.0",
            ),
            (None, fake_torch(), "", gpu.DRIVER_MEND),
        ],
    )
    def test_blind(self, monkeypatch: pytest.MonkeyPatch, visible: str | None, torch: Any, what: str, mend: str) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        problem = Problem(f"nvidia-smi shows 1 GPU(s), torch sees none{what}", mend)
        assert gpu.view_through_torch(torch, [CARD]) == ([CARD], None, problem)

    def test_card_that_cannot_be_opened(self) -> None:
        def busy(index: int) -> None:
            raise RuntimeError("CUDA error: device busy\nCompile with TORCH_USE_CUDA_DSA")

        torch = fake_torch(card())
        torch.cuda.get_device_properties = busy
        problem = Problem("torch cannot open the GPU: CUDA error: device busy", gpu.DRIVER_MEND)
        assert gpu.view_through_torch(torch, [CARD]) == ([CARD], None, problem)


class TestProbe:
    def test_healthy_on_the_cpu(self) -> None:
        torch = pytest.importorskip("torch")
        pytest.importorskip("numpy")
        probe, problem = gpu.probe_nf4(torch, "cpu")
        round_trip, product = nf4_errors_in_numpy(torch)
        assert problem is None
        assert (probe.ok, probe.device, probe.problem) == (True, "cpu", None)
        # bf16 and double quantisation are all that sets bitsandbytes apart from the reference.
        assert probe.round_trip_relative_error == pytest.approx(round_trip, abs=5e-4)
        assert probe.max_relative_error == pytest.approx(product, abs=2e-3)
        assert 0.085 < product < gpu.HIGHEST_HEALTHY_ERROR

    def test_wrong_code_book_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        bitsandbytes = gpu.import_bitsandbytes()
        quantize = bitsandbytes.functional.quantize_4bit

        def as_fp4(weight: Any, quant_type: str, compress_statistics: bool) -> Any:
            return quantize(weight, quant_type="fp4", compress_statistics=compress_statistics)

        monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", as_fp4)
        probe, problem = gpu.probe_nf4(torch, "cpu")
        assert not probe.ok
        assert probe.round_trip_relative_error == pytest.approx(0.122, abs=0.003)
        assert problem is not None
        assert problem.what == probe.problem
        assert problem.mend.startswith("reinstall bitsandbytes for ")

    @pytest.mark.parametrize("errors", [(float("nan"), 0.09), (0.09, float("nan")), (0.09, float("inf"))])
    def test_results_that_are_no_numbers(self, monkeypatch: pytest.MonkeyPatch, errors: tuple[float, float]) -> None:
        monkeypatch.setattr(gpu, "nf4_errors", lambda torch, device: errors)
        probe, problem = gpu.probe_nf4(fake_torch(), "cuda:0")
        assert not probe.ok
        assert {probe.round_trip_relative_error, probe.max_relative_error} <= {0.09, None}
        assert problem is not None

    @pytest.mark.parametrize(
        ("error", "what", "mend"),
        [
            (RuntimeError("\nCUDA VERSION MISMATCH\nmore"), "CUDA VERSION MISMATCH", "reinstall bitsandbytes for CUDA 13.0"),
            (ModuleNotFoundError("No bitsandbytes", name="bitsandbytes"), "No bitsandbytes", "pip install bitsandbytes"),
            (FakeOutOfMemory("CUDA out of memory"), "CUDA out of memory", "free memory on the GPU"),
            (AttributeError(), "AttributeError", "reinstall bitsandbytes for CUDA 13.0"),
        ],
    )
    def test_exceptions(self, monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, mend: str) -> None:
        def fail(torch: Any, device: str) -> None:
            raise error

        monkeypatch.setattr(gpu, "nf4_errors", fail)
        probe, problem = gpu.probe_nf4(fake_torch(), "cuda:0")
        assert probe == Nf4Probe(False, "cuda:0", None, None, f"the NF4 probe on cuda:0 failed: {what}")
        assert problem is not None
        assert problem.what == probe.problem
        assert problem.mend.startswith(mend)


def nf4_errors_in_numpy(torch: Any) -> tuple[float, float]:
    """The probe's two errors by the QLoRA paper's definition: normal quantiles, one fp32 scale for 64 weights."""
    import numpy

    quantile = NormalDist().inv_cdf
    negative = [-quantile(float(p)) for p in numpy.linspace(0.9677083, 0.5, 8)[:-1]]
    positive = [quantile(float(p)) for p in numpy.linspace(0.9677083, 0.5, 9)[:-1]]
    code_book = numpy.array(sorted([*negative, 0.0, *positive])) / max(positive)
    generator = torch.Generator().manual_seed(gpu.PROBE_SEED)
    weight = torch.randn(gpu.PROBE_SIZE, gpu.PROBE_SIZE, generator=generator).numpy().astype(numpy.float64)
    blocks = weight.reshape(-1, 64)
    scales = numpy.abs(blocks).max(axis=1, keepdims=True)
    nearest = numpy.abs(blocks[:, :, None] / scales[:, :, None] - code_book).argmin(axis=2)
    held = (code_book[nearest] * scales).reshape(weight.shape)

    def relative(result: Any, reference: Any) -> float:
        return float(numpy.linalg.norm(result - reference) / numpy.linalg.norm(reference))

    inputs = [torch.randn(rows, gpu.PROBE_SIZE, generator=generator).numpy() for rows in gpu.PROBE_ROWS]
    return relative(held, weight), max(relative(item @ held.T, item @ weight.T) for item in inputs)


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
