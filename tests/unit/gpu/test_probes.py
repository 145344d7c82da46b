"""The probe detects a device with wrong results or none."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from machines import CARD, card, fake_torch

from llmft_cli.base.libraries import import_bitsandbytes
from llmft_cli.gpu import probes
from llmft_cli.gpu.gpus import DRIVER_MEND, full_gpu_problem
from llmft_cli.gpu.nvidia_smi import GpuProcess
from llmft_cli.gpu.probes import Probe, load_bitsandbytes, probe, skipped_probe
from llmft_cli.gpu.problem import Problem
from llmft_cli.settings.compute_types import cpu_has_bf16

MEASURED = {
    "nf4_errors": (0.092, 0.093),
    "int8_error": 0.0075,
    "flops_per_second": {"bf16": 7e14, "fp16": 6e14, "fp32": 5e13},
    "bandwidth_bytes_per_second": 3e12,
}
HEALTHY = Probe("cuda:0", "bf16", True, True, 0.093, 0.092, 0.0075, 7e14, 6e14, 5e13, 3e12, None)
NOTHING = Probe("cuda:0", "bf16", False, False, None, None, None, None, None, None, None, None)
FULL = replace(CARD, device="cuda:0", memory_free_bytes=0, processes=[GpuProcess(4711, "python", 79 * 2**30)])


class TestOnTheCpu:
    def test_healthy(self) -> None:
        torch = pytest.importorskip("torch")
        pytest.importorskip("numpy")
        tried, problems = probe(torch, "cpu", import_bitsandbytes(), None, None)
        round_trip, product = nf4_errors_in_numpy(torch)
        assert problems == []
        assert (tried.device, tried.ok, tried.nf4_ok, tried.problem) == ("cpu", True, True, None)
        # Only double quantisation, and bf16 where it is the compute type, separate bitsandbytes from the reference.
        assert tried.nf4_round_trip_relative_error == pytest.approx(round_trip, abs=5e-4)
        assert tried.nf4_relative_error == pytest.approx(product, abs=2e-3)
        assert 0.085 < product < probes.HIGHEST_HEALTHY_NF4_ERROR
        assert tried.int8_relative_error == pytest.approx(int8_error_by_hand(torch), rel=0.05)
        assert tried.compute_dtype == ("bf16" if cpu_has_bf16() else "fp32")
        assert tried.fp16_flops_per_second is None
        for rate in (tried.bf16_flops_per_second, tried.fp32_flops_per_second, tried.bandwidth_bytes_per_second):
            assert rate is not None
            assert rate > 1e7

    def test_wrong_code_book_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        bitsandbytes = import_bitsandbytes()
        quantize = bitsandbytes.functional.quantize_4bit

        def as_fp4(weight: Any, quant_type: str, compress_statistics: bool) -> Any:
            return quantize(weight, quant_type="fp4", compress_statistics=compress_statistics)

        monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", as_fp4)
        tried, problems = probe(torch, "cpu", bitsandbytes, None, None)
        assert not tried.ok
        assert not tried.nf4_ok
        assert tried.nf4_round_trip_relative_error == pytest.approx(0.122, abs=0.003)
        assert [problem.what for problem in problems] == [tried.problem]
        assert problems[0].mend.startswith("reinstall bitsandbytes for ")

    def test_too_few_int8_levels_are_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        bitsandbytes = import_bitsandbytes()
        quantize = bitsandbytes.functional.int8_vectorwise_quant

        def coarse(*arguments: Any, **more: Any) -> Any:
            levels, scales, outliers = quantize(*arguments, **more)
            return levels // 2 * 2, scales, outliers

        monkeypatch.setattr(bitsandbytes.functional, "int8_vectorwise_quant", coarse)
        tried, problems = probe(torch, "cpu", bitsandbytes, None, None)
        assert (tried.ok, tried.nf4_ok) == (False, True)
        assert tried.int8_relative_error is not None
        assert tried.int8_relative_error > probes.HIGHEST_HEALTHY_INT8_ERROR
        assert problems[0].what.startswith("int8 gives wrong results on cpu (relative error 0.0")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, seen: Any) -> Any:
    """A function that makes the trials return other values or raise errors."""

    def measure(**values: Any) -> None:
        for name, value in (MEASURED | values).items():

            def trial(*arguments: Any, value: Any = value) -> Any:
                if isinstance(value, Exception):
                    raise value
                return value[arguments[-1]] if isinstance(value, dict) else value

            monkeypatch.setattr(probes, name, trial)

    measure()
    return measure


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes torch see one GPU of a compute capability; returns that torch."""

    def see(major: int, minor: int) -> Any:
        monkeypatch.setitem(sys.modules, "torch", fake_torch(card(major=major, minor=minor)))
        return sys.modules["torch"]

    see(9, 0)
    return see


def tried(**more: Any) -> tuple[Probe, list[Problem]]:
    return probe(sys.modules["torch"], "cuda:0", None, more.get("unusable"), more.get("gpu", CARD))


class TestVerdict:
    def test_healthy(self, measured: Any) -> None:
        assert tried() == (HEALTHY, [])

    @pytest.mark.parametrize(
        "errors", [(float("nan"), 0.09), (0.09, float("nan")), (0.09, float("inf")), (0.2, 0.09), (0.09, 0.2)]
    )
    def test_wrong_nf4(self, measured: Any, errors: tuple[float, float]) -> None:
        measured(nf4_errors=errors)
        found, problems = tried()
        assert (found.ok, found.nf4_ok) == (False, False)
        assert {found.nf4_round_trip_relative_error, found.nf4_relative_error} <= {0.09, 0.2, None}
        assert problems[0].what.startswith("NF4 gives wrong results on cuda:0 (relative errors ")
        assert found.problem == problems[0].what

    @pytest.mark.parametrize("error", [0.017, float("nan")])
    def test_wrong_int8_leaves_nf4_alone(self, measured: Any, error: float) -> None:
        measured(int8_error=error)
        found, problems = tried()
        assert (found.ok, found.nf4_ok) == (False, True)
        assert found.problem == f"int8 gives wrong results on cuda:0 (relative error {error:.3f}, normal is 0.01)"
        assert problems[0].mend.startswith("reinstall bitsandbytes for CUDA 13.0: pip install ")

    def test_a_failure_hides_nothing_else(self, measured: Any) -> None:
        measured(nf4_errors=RuntimeError("\nno NF4 here\nmore"), bandwidth_bytes_per_second=RuntimeError("no copying"))
        found, problems = tried()
        failed = {"ok": False, "nf4_ok": False, "nf4_relative_error": None, "nf4_round_trip_relative_error": None}
        what = "on cuda:0 NF4 failed: no NF4 here"
        assert found == replace(HEALTHY, **failed, bandwidth_bytes_per_second=None, problem=what)
        assert [problem.what for problem in problems] == [what, "on cuda:0 copying failed: no copying"]
        assert problems[0].mend.startswith("reinstall bitsandbytes")
        assert problems[1].mend == DRIVER_MEND

    def test_a_gpu_without_bf16(self, measured: Any, seen: Any) -> None:
        seen(7, 5)
        found, problems = tried(gpu=replace(CARD, lacks=["bf16", "FlashAttention"]))
        assert (found, problems) == (replace(HEALTHY, compute_dtype="fp16", bf16_flops_per_second=None), [])
        assert found.flops_per_second == 6e14

    def test_int8_is_not_tried_on_a_gpu_that_lacks_it(self, measured: Any, seen: Any) -> None:
        seen(7, 0)
        measured(int8_error=AssertionError("tried"))
        found, problems = tried(gpu=replace(CARD, lacks=["int8", "bf16", "FlashAttention"]))
        assert (found.ok, found.int8_relative_error, problems) == (True, None, [])

    def test_one_cause_is_reported_once(self, measured: Any) -> None:
        """After a fault in one kernel, CUDA rejects all later ones with the same message."""
        measured(**dict.fromkeys(MEASURED, RuntimeError("CUDA error: an illegal memory access was encountered\nmore")))
        found, problems = tried()
        trials = "NF4, int8, bf16 products, fp16 products, fp32 products, copying"
        what = f"on cuda:0 {trials} failed: CUDA error: an illegal memory access was encountered"
        assert [problem.what for problem in problems] == [what]
        assert found == replace(NOTHING, problem=what)

    def test_an_error_without_words(self, measured: Any) -> None:
        measured(nf4_errors=AttributeError())
        assert tried()[0].problem == "on cuda:0 NF4 failed: AttributeError"

    def test_bitsandbytes_that_cannot_be_used_is_not_tried(self, measured: Any) -> None:
        measured(nf4_errors=AssertionError("tried"), int8_error=AssertionError("tried"))
        unusable = Problem("bitsandbytes is not installed", "pip install bitsandbytes")
        found, problems = tried(unusable=unusable)
        assert problems == [unusable]
        assert (found.ok, found.nf4_ok, found.problem) == (False, False, unusable.what)
        assert (found.bf16_flops_per_second, found.bandwidth_bytes_per_second) == (7e14, 3e12)


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "said",
        ["CUDA out of memory. Tried to allocate 2.00 MiB", "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"],
    )
    def test_who_holds_the_memory_is_named(self, measured: Any, said: str) -> None:
        measured(**dict.fromkeys(MEASURED, RuntimeError(said)))
        found, problems = tried(gpu=FULL)
        assert problems == [full_gpu_problem(FULL)]
        assert found.problem == "GPU 0 is fully used by: python (pid 4711, 79 GiB)"

    def test_on_a_card_that_nvidia_smi_does_not_list(self, measured: Any) -> None:
        measured(bandwidth_bytes_per_second=RuntimeError("CUDA out of memory"))
        found, problems = tried(gpu=None)
        assert found.problem == "on cuda:0 copying failed: CUDA out of memory"
        assert problems[0].mend.startswith("free memory on the GPU")


class TestSkipped:
    def test_the_reason_is_reported(self, seen: Any) -> None:
        reason = full_gpu_problem(FULL)
        assert reason.what == "GPU 0 is fully used by: python (pid 4711, 79 GiB)"
        assert skipped_probe(seen(9, 0), "cuda:0", reason, None) == (replace(NOTHING, problem=reason.what), [reason])

    def test_a_bitsandbytes_that_cannot_be_used_is_reported_as_well(self, seen: Any) -> None:
        unusable = Problem("bitsandbytes is not installed", "pip install bitsandbytes")
        found, problems = skipped_probe(seen(7, 5), "cuda:0", full_gpu_problem(FULL), unusable)
        assert (found.problem, problems) == (full_gpu_problem(FULL).what, [full_gpu_problem(FULL), unusable])
        assert found.compute_dtype == "fp16"


class TestLoading:
    def test_on_the_cpu_any_library_is_accepted(self) -> None:
        torch = pytest.importorskip("torch")
        assert load_bitsandbytes(torch, on_gpu=False) == (import_bitsandbytes(), None)

    @pytest.mark.parametrize(
        ("source", "what", "mend"),
        [
            ("import no_such_package", "no_such_package is not installed", "pip install no_such_package"),
            (
                "raise RuntimeError('failed to load backend')",
                "bitsandbytes cannot be imported: failed to load backend",
                "reinstall bitsandbytes for CUDA 13.0: ",
            ),
        ],
    )
    def test_not_importable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, what: str, mend: str) -> None:
        (tmp_path / "bitsandbytes.py").write_text(source)
        monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        bitsandbytes, problem = load_bitsandbytes(fake_torch(), on_gpu=True)
        assert bitsandbytes is None
        assert problem is not None
        assert problem.what == what
        assert problem.mend.startswith(mend)


def int8_error_by_hand(torch: Any) -> float:
    """The worst product of a weight with 255 levels and one scale per row; on the CPU, the inputs are not quantised."""
    generator, weight = probes.random_weight(torch)
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    held = (weight / scales).round() * scales
    return probes.worst_product(torch, generator, weight, lambda inputs: inputs @ held.t())


def nf4_errors_in_numpy(torch: Any) -> tuple[float, float]:
    """The probe's two errors by the QLoRA paper's definition: normal quantiles, one fp32 scale for 64 weights."""
    import numpy

    quantile = NormalDist().inv_cdf
    negative = [-quantile(float(p)) for p in numpy.linspace(0.9677083, 0.5, 8)[:-1]]
    positive = [quantile(float(p)) for p in numpy.linspace(0.9677083, 0.5, 9)[:-1]]
    code_book = numpy.array(sorted([*negative, 0.0, *positive])) / max(positive)
    generator = torch.Generator().manual_seed(probes.SEED)
    weight = torch.randn(probes.SIZE, probes.SIZE, generator=generator).numpy().astype(numpy.float64)
    blocks = weight.reshape(-1, 64)
    scales = numpy.abs(blocks).max(axis=1, keepdims=True)
    nearest = numpy.abs(blocks[:, :, None] / scales[:, :, None] - code_book).argmin(axis=2)
    held = (code_book[nearest] * scales).reshape(weight.shape)

    def relative(result: Any, reference: Any) -> float:
        return float(numpy.linalg.norm(result - reference) / numpy.linalg.norm(reference))

    inputs = [torch.randn(rows, probes.SIZE, generator=generator).numpy() for rows in probes.ROWS]
    return relative(held, weight), max(relative(item @ held.T, item @ weight.T) for item in inputs)
