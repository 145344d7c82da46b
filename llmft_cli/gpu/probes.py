"""Whether and how fast a device computes what training needs, tried out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmft_cli.base.errors import first_line
from llmft_cli.base.libraries import import_bitsandbytes, version_of
from llmft_cli.gpu.cuda_libraries import mismatch
from llmft_cli.gpu.gpus import DRIVER_MEND, MEMORY_MEND, Gpu, fullness, is_full
from llmft_cli.gpu.problem import Problem
from llmft_cli.gpu.rates import bandwidth_bytes_per_second, flops_per_second
from llmft_cli.settings.compute_types import BF16, FP16, FP32, TORCH_NAMES, best_type, why_not

SEED = 0
SIZE = 512
# bitsandbytes takes another kernel for one row (generation), few rows and many (training).
ROWS = (1, 16, 512)
# NF4 in blocks of 64 costs a normal weight 9.2% in the round trip, and 8.7% to 10.0% in its products (16 seeds on
# an H100). The same with FP4's code book is 12.2%; scales or a layout gone wrong are far above that.
HIGHEST_HEALTHY_NF4_ERROR = 0.11
# int8 with a scale for each row costs 1.05% to 1.23% on a GPU, where both factors are int8 (16 seeds on an H100, 32
# worked out in fp32), and 0.70% to 0.81% on the CPU, where only the weight is. Half the levels in one factor cost 1.65%.
HIGHEST_HEALTHY_INT8_ERROR = 0.015


@dataclass(frozen=True)
class Probe:
    """What one device computed; None for what failed or what it cannot do, and `problem` is the first reason.

    Errors are ||result - fp32 result|| / ||fp32 result||, of products the largest over the trials. Rates are those of
    matrix products. `compute_dtype` is the type that a training computes in there unless told otherwise.
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
        """The rate in the type that a training computes in."""
        rates = {BF16: self.bf16_flops_per_second, FP16: self.fp16_flops_per_second, FP32: self.fp32_flops_per_second}
        return rates[self.compute_dtype]


def load_bitsandbytes(torch: Any, on_gpu: bool) -> tuple[Any, Problem | None]:
    """bitsandbytes, None where it cannot be imported, and what keeps it from computing."""
    try:
        bitsandbytes = import_bitsandbytes()
    except ModuleNotFoundError as error:
        return None, Problem(f"{error.name} is not installed", f"pip install {error.name}")
    # On import it loads compiled libraries and the backends that are installed, which raise what they like.
    except Exception as error:
        return None, Problem(f"bitsandbytes cannot be imported: {first_line(error)}", reinstall(torch))
    return bitsandbytes, mismatch(torch, bitsandbytes) if on_gpu else None


class Trials:
    """Trials on one device: one that fails hides none of the others."""

    def __init__(self, torch: Any, device: str, gpu: Gpu | None) -> None:
        self._torch, self._device, self._gpu = torch, device, gpu
        self._failures: dict[str, tuple[Exception, list[str]]] = {}

    def attempt(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """The measured value, None where the trial failed."""
        try:
            return measure(self._torch, self._device, *arguments)
        # The libraries raise whatever they like where they do not fit each other; the probe is there to find it.
        except Exception as error:
            self._failures.setdefault(first_line(error), (error, []))[1].append(name)
            return None

    def problems(self) -> list[Problem]:
        """What failed, once for each reason."""
        return [self._problem(said, error, names) for said, (error, names) in self._failures.items()]

    def _problem(self, said: str, error: Exception, names: list[str]) -> Problem:
        # Libraries that find no memory for their own handles say so in other words.
        if self._gpu and (is_full(self._gpu) or "out of memory" in said):
            return fullness(self._gpu)
        what = f"on {self._device} {', '.join(names)} failed: {said}"
        if "out of memory" in said:
            return Problem(what, MEMORY_MEND)
        return Problem(what, reinstall(self._torch) if {"NF4", "int8"} & set(names) else DRIVER_MEND)


def probe(torch: Any, device: str, bitsandbytes: Any, unusable: Problem | None, gpu: Gpu | None) -> tuple[Probe, list[Problem]]:
    """Try a device out: NF4 and int8 weights, then the rates, all as far as the device can.

    Args:
        unusable: what keeps bitsandbytes from computing there.
        gpu: the device as nvidia-smi shows it; where its memory is too little, its processes are named.
    """
    trials = Trials(torch, device, gpu)
    place = torch.device(device)
    compute_dtype = best_type(place)
    nf4 = int8 = None
    if not unusable:
        nf4 = trials.attempt("NF4", nf4_errors, bitsandbytes, compute_dtype)
    if not unusable and not (gpu and "int8" in (gpu.lacks or [])):
        int8 = trials.attempt("int8", int8_error, bitsandbytes)
    possible = [name for name in TORCH_NAMES if why_not(place, name) is None]
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
    # Not >, so that what is no number is wrong.
    if all(error <= highest for error in errors):
        return []
    told = f"relative error{'s' if len(errors) > 1 else ''} {' and '.join(f'{error:.3f}' for error in errors)}"
    what = f"{name} computes wrong results on {device} ({told}, healthy is {healthy})"
    return [Problem(what, reinstall(torch))]


def untried(torch: Any, device: str, reason: Problem, unusable: Problem | None) -> tuple[Probe, list[Problem]]:
    """What there is to say, without a try, of a device that must not or cannot be opened."""
    found = Probe(device, best_type(torch.device(device)), ok=False, nf4_ok=False, problem=reason.what)
    return found, [reason, unusable] if unusable else [reason]


def nf4_errors(torch: Any, device: str, bitsandbytes: Any, name: str) -> tuple[float, float]:
    """Relative errors of the round trip, and of the worst product in a type, of a seeded weight held in NF4."""
    generator, weight = drawn(torch)
    kind = getattr(torch, TORCH_NAMES[name])
    held = weight.to(device, kind)
    packed, state = bitsandbytes.functional.quantize_4bit(held, quant_type="nf4", compress_statistics=True)

    def multiply(inputs: Any) -> Any:
        return bitsandbytes.matmul_4bit(inputs.to(device, kind), packed.t(), quant_state=state)

    worst = worst_product(torch, generator, weight, multiply)
    return relative_error(bitsandbytes.functional.dequantize_4bit(packed, state), weight), worst


def int8_error(torch: Any, device: str, bitsandbytes: Any) -> float:
    """Relative error of the worst product of a seeded weight held in int8, as transformers loads it."""
    generator, weight = drawn(torch)
    layer = bitsandbytes.nn.Linear8bitLt(SIZE, SIZE, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer.to(device)
    return worst_product(torch, generator, weight, lambda inputs: layer(inputs.to(device, torch.float16)))


def drawn(torch: Any) -> tuple[Any, Any]:
    """A random weight, and the generator to draw inputs from: on the CPU, so that every device gets the same."""
    generator = torch.Generator().manual_seed(SEED)
    return generator, torch.randn(SIZE, SIZE, generator=generator)


def worst_product(torch: Any, generator: Any, weight: Any, multiply: Callable[[Any], Any]) -> float:
    errors = []
    for rows in ROWS:
        inputs = torch.randn(rows, SIZE, generator=generator)
        errors.append(relative_error(multiply(inputs), inputs @ weight.t()))
    # torch's maximum, unlike Python's, keeps a NaN.
    return float(torch.tensor(errors).max())


def relative_error(result: Any, reference: Any) -> float:
    return float((result.float().cpu() - reference).norm() / reference.norm())


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def reinstall(torch: Any) -> str:
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    found = f"found bitsandbytes {version_of('bitsandbytes')} with torch {torch.__version__} for {runtime}"
    return f"reinstall bitsandbytes for {runtime}: pip install --force-reinstall --no-deps bitsandbytes ({found})"
