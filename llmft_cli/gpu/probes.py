"""Whether and how well a device computes what training needs, tried out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmft_cli.errors import first_line
from llmft_cli.gpu.findings import Problem
from llmft_cli.libraries import import_bitsandbytes, version_of

PROBE_SEED = 0
PROBE_SIZE = 512
# bitsandbytes takes another kernel for one row (generation), few rows and many (training).
PROBE_ROWS = (1, 16, 512)
# NF4 in blocks of 64 costs a normal weight 9.2% in the round trip, and 8.7% to 9.4% in its products (eight
# seeds). The same with FP4's code book is 12.2%; scales or a layout gone wrong are far above that.
HIGHEST_HEALTHY_ERROR = 0.11


@dataclass(frozen=True)
class Nf4Probe:
    """Whether 4-bit weights compute what they should: ||result - fp32 result|| / ||fp32 result||.

    `max_relative_error` is that of the 4-bit matrix product, the largest over the trials.
    """

    ok: bool
    device: str | None
    max_relative_error: float | None
    round_trip_relative_error: float | None
    problem: str | None


def probe_nf4(torch: Any, device: str) -> tuple[Nf4Probe, Problem | None]:
    """Hold a random weight in NF4 on `device`, multiply with it, and compare with fp32."""
    try:
        round_trip, product = nf4_errors(torch, device)
    # The libraries raise whatever they like where they do not fit each other; the probe is there to find it.
    except Exception as error:
        what = f"the NF4 probe on {device} failed: {first_line(error)}"
        return Nf4Probe(False, device, None, None, what), Problem(what, probe_mend(torch, error))
    if round_trip <= HIGHEST_HEALTHY_ERROR and product <= HIGHEST_HEALTHY_ERROR:
        return Nf4Probe(True, device, product, round_trip, None), None
    what = f"NF4 computes wrong results on {device} (relative errors {round_trip:.3f} and {product:.3f}, healthy is 0.09)"
    return Nf4Probe(
        False, device, product if math.isfinite(product) else None, round_trip if math.isfinite(round_trip) else None, what
    ), Problem(what, probe_mend(torch))


def nf4_errors(torch: Any, device: str) -> tuple[float, float]:
    """Relative errors of the round trip, and of the worst product, of a seeded weight held in NF4."""
    bitsandbytes = import_bitsandbytes()
    # Drawn on the CPU, so that every device gets the same numbers.
    generator = torch.Generator().manual_seed(PROBE_SEED)
    weight = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator)
    held = weight.to(device, torch.bfloat16)
    packed, state = bitsandbytes.functional.quantize_4bit(held, quant_type="nf4", compress_statistics=True)
    products = []
    for rows in PROBE_ROWS:
        inputs = torch.randn(rows, PROBE_SIZE, generator=generator)
        product = bitsandbytes.matmul_4bit(inputs.to(device, torch.bfloat16), packed.t(), quant_state=state)
        products.append(relative_error(product, inputs @ weight.t()))
    round_trip = relative_error(bitsandbytes.functional.dequantize_4bit(packed, state), weight)
    # torch's maximum, unlike Python's, keeps a NaN.
    return round_trip, float(torch.tensor(products).max())


def relative_error(result: Any, reference: Any) -> float:
    return float((result.float().cpu() - reference).norm() / reference.norm())


def probe_mend(torch: Any, error: Exception | None = None) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"pip install {error.name}"
    if isinstance(error, torch.OutOfMemoryError):
        return "free memory on the GPU: `nvidia-smi` shows which processes hold it"
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    found = f"found bitsandbytes {version_of('bitsandbytes')} with torch {torch.__version__} for {runtime}"
    return f"reinstall bitsandbytes for {runtime}: pip install --force-reinstall --no-deps bitsandbytes ({found})"
