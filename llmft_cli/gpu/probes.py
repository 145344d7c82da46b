"""Live tests of a device: are quantised results correct, and how fast does it compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmft_cli.base.errors import first_line
from llmft_cli.base.libraries import import_bitsandbytes, version_of
from llmft_cli.gpu.cuda_libraries import mismatch
from llmft_cli.gpu.gpus import DRIVER_MEND, MEMORY_MEND, Gpu, full_gpu_problem, is_full
from llmft_cli.gpu.problem import Problem
from llmft_cli.gpu.rates import bandwidth_bytes_per_second, flops_per_second
from llmft_cli.settings.compute_types import BF16, FP16, FP32, TORCH_NAMES, best_type, why_unsupported

SEED = 0
SIZE = 512
# bitsandbytes uses different kernels for one row (generation), a few rows, and many rows (training).
ROWS = (1, 16, 512)
# NF4 in blocks of 64 has a relative error of 9.2% in the round trip of a normal weight, and of 8.7% to 10.0% in its
# products (16 seeds on an H100). With FP4's code book it is 12.2%; wrong scales or a wrong layout give far more.
HIGHEST_HEALTHY_NF4_ERROR = 0.11
# int8 with one scale per row has an error of 1.05% to 1.23% on a GPU, where both factors are int8 (16 seeds on an H100,
# 32 computed in fp32), and 0.70% to 0.81% on the CPU, where only the weight is. Half the levels in one factor: 1.65%.
HIGHEST_HEALTHY_INT8_ERROR = 0.015


@dataclass(frozen=True)
class Probe:
    """The results of one device; None for what failed or is not supported, and `problem` is the first reason.

    Errors are ||result - fp32 result|| / ||fp32 result||, for products the largest over ROWS. Rates are those of
    matrix products. `compute_dtype` is the type that training uses there by default.
    """

    device: str
    compute_dtype: str
    ok: bool
    nf4_ok: bool
    nf4_relative_error: float | None = None
    nf4_round_trip_relative_error: float | None = None
    int8_relative_error: float | None = None
    bf16_flops_per_second: float | None = None
    fp16_flops_per_second: float | None = None
    fp32_flops_per_second: float | None = None
    bandwidth_bytes_per_second: float | None = None
    problem: str | None = None

    @property
    def flops_per_second(self) -> float | None:
        """The rate in `compute_dtype`."""
        rates = {BF16: self.bf16_flops_per_second, FP16: self.fp16_flops_per_second, FP32: self.fp32_flops_per_second}
        return rates[self.compute_dtype]


def load_bitsandbytes(torch: Any, on_gpu: bool) -> tuple[Any, Problem | None]:
    """bitsandbytes, or None if it cannot be imported, and why it cannot be used."""
    try:
        bitsandbytes = import_bitsandbytes()
    except ModuleNotFoundError as error:
        return None, Problem(f"{error.name} is not installed", f"pip install {error.name}")
    # Importing it loads compiled libraries and installed backends, which may raise anything.
    except Exception as error:
        return None, Problem(f"bitsandbytes cannot be imported: {first_line(error)}", reinstall(torch))
    return bitsandbytes, mismatch(torch, bitsandbytes) if on_gpu else None


class Trials:
    """Trials on one device, each independent of the others' failures."""

    def __init__(self, torch: Any, device: str, gpu: Gpu | None) -> None:
        self._torch, self._device, self._gpu = torch, device, gpu
        self._failures: dict[str, tuple[Exception, list[str]]] = {}

    def attempt(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """The measured value, or None if the trial failed."""
        try:
            return measure(self._torch, self._device, *arguments)
        # Mismatched libraries may raise anything, and finding that is the purpose of the probe.
        except Exception as error:
            self._failures.setdefault(first_line(error), (error, []))[1].append(name)
            return None

    def problems(self) -> list[Problem]:
        """One problem per distinct error message."""
        return [self._problem(said, error, names) for said, (error, names) in self._failures.items()]

    def _problem(self, said: str, error: Exception, names: list[str]) -> Problem:
        # Not every library says "out of memory": cuBLAS, for one, reports a failed handle.
        if self._gpu and (is_full(self._gpu) or "out of memory" in said):
            return full_gpu_problem(self._gpu)
        what = f"on {self._device} {', '.join(names)} failed: {said}"
        if "out of memory" in said:
            return Problem(what, MEMORY_MEND)
        return Problem(what, reinstall(self._torch) if {"NF4", "int8"} & set(names) else DRIVER_MEND)


def probe(torch: Any, device: str, bitsandbytes: Any, unusable: Problem | None, gpu: Gpu | None) -> tuple[Probe, list[Problem]]:
    """Test a device: NF4 and int8 weights, then the rates, as far as the device supports them.

    Args:
        unusable: why bitsandbytes cannot be used there, or None.
        gpu: the device as nvidia-smi shows it; if it is out of memory, the problem names its processes.
    """
    trials = Trials(torch, device, gpu)
    place = torch.device(device)
    compute_dtype = best_type(place)
    nf4 = int8 = None
    if not unusable:
        nf4 = trials.attempt("NF4", nf4_errors, bitsandbytes, compute_dtype)
    if not unusable and not (gpu and "int8" in (gpu.lacks or [])):
        int8 = trials.attempt("int8", int8_error, bitsandbytes)
    possible = [name for name in TORCH_NAMES if why_unsupported(place, name) is None]
    flops = {name: trials.attempt(f"{name} products", flops_per_second, name) for name in possible}
    bandwidth = trials.attempt("copying", bandwidth_bytes_per_second)
    problems = [unusable] if unusable else []
    problems += wrong_results(torch, device, "NF4", nf4 or (), HIGHEST_HEALTHY_NF4_ERROR, "0.09")
    nf4_ok = nf4 is not None and not problems
    problems += trials.problems()
    problems += wrong_results(torch, device, "int8", () if int8 is None else (int8,), HIGHEST_HEALTHY_INT8_ERROR, "0.01")
    round_trip, product = map(finite, nf4 or (None, None))
    found = Probe(
        device=device,
        compute_dtype=compute_dtype,
        ok=not problems,
        nf4_ok=nf4_ok,
        nf4_relative_error=product,
        nf4_round_trip_relative_error=round_trip,
        int8_relative_error=finite(int8),
        bf16_flops_per_second=flops.get(BF16),
        fp16_flops_per_second=flops.get(FP16),
        fp32_flops_per_second=flops.get(FP32),
        bandwidth_bytes_per_second=bandwidth,
        problem=problems[0].what if problems else None,
    )
    return found, problems


def wrong_results(torch: Any, device: str, name: str, errors: Sequence[float], highest: float, healthy: str) -> list[Problem]:
    # Written with <= so that NaN counts as wrong.
    if all(error <= highest for error in errors):
        return []
    shown = f"relative error{'s' if len(errors) > 1 else ''} {' and '.join(f'{error:.3f}' for error in errors)}"
    what = f"{name} gives wrong results on {device} ({shown}, normal is {healthy})"
    return [Problem(what, reinstall(torch))]


def skipped_probe(torch: Any, device: str, reason: Problem, unusable: Problem | None) -> tuple[Probe, list[Problem]]:
    """The probe of a device that was not opened, and its problems."""
    found = Probe(device, best_type(torch.device(device)), ok=False, nf4_ok=False, problem=reason.what)
    return found, [reason, unusable] if unusable else [reason]


def nf4_errors(torch: Any, device: str, bitsandbytes: Any, name: str) -> tuple[float, float]:
    """Relative errors of a seeded NF4 weight: of its round trip, and of its worst product in the named type."""
    generator, weight = random_weight(torch)
    kind = getattr(torch, TORCH_NAMES[name])
    held = weight.to(device, kind)
    packed, state = bitsandbytes.functional.quantize_4bit(held, quant_type="nf4", compress_statistics=True)

    def multiply(inputs: Any) -> Any:
        return bitsandbytes.matmul_4bit(inputs.to(device, kind), packed.t(), quant_state=state)

    worst = worst_product(torch, generator, weight, multiply)
    return relative_error(bitsandbytes.functional.dequantize_4bit(packed, state), weight), worst


def int8_error(torch: Any, device: str, bitsandbytes: Any) -> float:
    """Relative error of the worst product of a seeded int8 weight, set up as transformers does."""
    generator, weight = random_weight(torch)
    layer = bitsandbytes.nn.Linear8bitLt(SIZE, SIZE, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer.to(device)
    return worst_product(torch, generator, weight, lambda inputs: layer(inputs.to(device, torch.float16)))


def random_weight(torch: Any) -> tuple[Any, Any]:
    """A generator for inputs, and a random weight: both on the CPU, so that every device gets the same values."""
    generator = torch.Generator().manual_seed(SEED)
    return generator, torch.randn(SIZE, SIZE, generator=generator)


def worst_product(torch: Any, generator: Any, weight: Any, multiply: Callable[[Any], Any]) -> float:
    errors = []
    for rows in ROWS:
        inputs = torch.randn(rows, SIZE, generator=generator)
        errors.append(relative_error(multiply(inputs), inputs @ weight.t()))
    # torch's maximum propagates NaN; Python's does not.
    return float(torch.tensor(errors).max())


def relative_error(result: Any, reference: Any) -> float:
    return float((result.float().cpu() - reference).norm() / reference.norm())


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def reinstall(torch: Any) -> str:
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    found = f"found bitsandbytes {version_of('bitsandbytes')} with torch {torch.__version__} for {runtime}"
    return f"reinstall bitsandbytes for {runtime}: pip install --force-reinstall --no-deps bitsandbytes ({found})"
