"""The probe finds a device that computes wrong, or not at all."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import pytest
from machines import FakeOutOfMemory, fake_torch

from llmft_cli.gpu import probes as gpu
from llmft_cli.gpu.probes import Nf4Probe


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
