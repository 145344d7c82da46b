"""Whether and how fast a device computes what training needs, tried out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmft_cli.errors import first_line
from llmft_cli.gpu.cuda_libraries import mismatch
from llmft_cli.gpu.findings import Problem
from llmft_cli.gpu.gpus import DRIVER_MEND, MEMORY_MEND, Gpu, fullness, is_full
from llmft_cli.gpu.rates import bandwidth_bytes_per_second, bf16_flops_per_second
from llmft_cli.gpu.torch_view import BUILDS
from llmft_cli.libraries import import_bitsandbytes, version_of

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
    """What one device computed; None for what failed, and `problem` is the first reason.

    Errors are ||result - fp32 result|| / ||fp32 result||, of products the largest over the trials.
    """

    device: str
    ok: bool
    nf4_ok: bool
    nf4_relative_error: float | None
    nf4_round_trip_relative_error: float | None
    int8_relative_error: float | None
    bf16_flops_per_second: float | None
    bandwidth_bytes_per_second: float | None
    problem: str | None


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
        if "no kernel image" in said:
            return Problem(what, f"install a torch that is built for this GPU's compute capability: {BUILDS}")
        return Problem(what, reinstall(self._torch) if {"NF4", "int8"} & set(names) else DRIVER_MEND)


def probe(torch: Any, device: str, bitsandbytes: Any, unusable: Problem | None, gpu: Gpu | None) -> tuple[Probe, list[Problem]]:
    """Try a device out: NF4 and int8 weights, then the rates.

    Args:
        unusable: what keeps bitsandbytes from computing there.
        gpu: the device as nvidia-smi shows it; where its memory is too little, its processes are named.
    """
    trials = Trials(torch, device, gpu)
    nf4 = int8 = None
    if not unusable:
        nf4 = trials.attempt("NF4", nf4_errors, bitsandbytes)
        int8 = trials.attempt("int8", int8_error, bitsandbytes)
    flops = trials.attempt("bf16 products", bf16_flops_per_second)
    bandwidth = trials.attempt("copying", bandwidth_bytes_per_second)
    problems = [unusable] if unusable else []
    # Not <=, so that what is no number is wrong.
    if nf4 and not all(error <= HIGHEST_HEALTHY_NF4_ERROR for error in nf4):
        errors = " and ".join(f"{error:.3f}" for error in nf4)
        what = f"NF4 computes wrong results on {device} (relative errors {errors}, healthy is 0.09)"
        problems.append(Problem(what, reinstall(torch)))
    nf4_ok = nf4 is not None and not problems
    problems += trials.problems()
    if int8 is not None and not int8 <= HIGHEST_HEALTHY_INT8_ERROR:
        what = f"int8 computes wrong results on {device} (relative error {int8:.3f}, healthy is 0.01)"
        problems.append(Problem(what, reinstall(torch)))
    round_trip, product = map(finite, nf4 or (None, None))
    first = problems[0].what if problems else None
    return Probe(device, not problems, nf4_ok, product, round_trip, finite(int8), flops, bandwidth, first), problems


def unopened(device: str, unusable: Problem | None, gpu: Gpu) -> tuple[Probe, list[Problem]]:
    """What there is to say, without a try, of a device whose memory has no room for CUDA's context."""
    full = fullness(gpu)
    found = Probe(
        device=device,
        ok=False,
        nf4_ok=False,
        nf4_relative_error=None,
        nf4_round_trip_relative_error=None,
        int8_relative_error=None,
        bf16_flops_per_second=None,
        bandwidth_bytes_per_second=None,
        problem=full.what,
    )
    return found, [full, unusable] if unusable else [full]


def nf4_errors(torch: Any, device: str, bitsandbytes: Any) -> tuple[float, float]:
    """Relative errors of the round trip, and of the worst product, of a seeded weight held in NF4."""
    generator, weight = drawn(torch)
    held = weight.to(device, torch.bfloat16)
    packed, state = bitsandbytes.functional.quantize_4bit(held, quant_type="nf4", compress_statistics=True)

    def multiply(inputs: Any) -> Any:
        return bitsandbytes.matmul_4bit(inputs.to(device, torch.bfloat16), packed.t(), quant_state=state)

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
