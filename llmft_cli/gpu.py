"""What this machine offers a fine-tuning job: GPUs, library versions, a live NF4 probe, memory and disk.

A machine without a GPU, with a broken driver or without torch is a finding in the report, with
the line that mends it. Only `require_gpu` turns such a finding into an error.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from llmft_cli import __version__
from llmft_cli.errors import MachineError, first_line
from llmft_cli.libraries import import_bitsandbytes, version_of
from llmft_cli.progress import Reporter

LIBRARIES = ("torch", "bitsandbytes", "transformers", "peft", "accelerate", "datasets", "GPUtil", "wandb", "triton")
BYTES_PER_MIB = 2**20

PROBE_SEED = 0
PROBE_SIZE = 512
# bitsandbytes takes another kernel for one row (generation), few rows and many (training).
PROBE_ROWS = (1, 16, 512)
# NF4 in blocks of 64 costs a normal weight 9.2% in the round trip, and 8.7% to 9.4% in its products (eight
# seeds). The same with FP4's code book is 12.2%; scales or a layout gone wrong are far above that.
HIGHEST_HEALTHY_ERROR = 0.11

NO_GPU_MEND = "use a machine with an NVIDIA GPU and its driver; start a container with its GPUs (docker run --gpus all)"
DRIVER_MEND = "see what `nvidia-smi` says; a driver that was updated or crashed needs a reboot"


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the command or setting that mends it."""

    what: str
    mend: str


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi shows it; None where the card does not tell, or torch does not see it."""

    index: int
    name: str
    uuid: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    load: float | None
    temperature_celsius: float | None
    driver: str
    compute_capability: str | None = None
    bf16: bool | None = None


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


@dataclass(frozen=True)
class Memory:
    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Disk:
    """The file system that holds `path`, or will hold it once it is made."""

    path: str
    purpose: Literal["cache", "runs"]
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Report:
    """All findings; `bf16` tells whether torch's first GPU computes in bf16, None where torch sees none."""

    gpus: list[Gpu]
    gpu_problem: str | None
    nf4_probe: Nf4Probe
    versions: dict[str, str | None]
    bf16: bool | None
    memory: Memory
    disks: list[Disk]
    problems: list[Problem]


def check(reporter: Reporter, cache: Path, runs: Path) -> Report:
    """Look at the machine. Whatever is missing or broken is a finding of the report, never an error.

    Args:
        reporter: told of the steps that take time.
        cache: where downloaded models go; it need not exist.
        runs: where runs go; it need not exist.
    """
    import psutil

    # Listed before torch opens the card, whose context takes several hundred MiB of the free memory.
    gpus, absence = list_gpus()
    reporter.note("loading torch")
    torch = import_torch()
    bf16 = cuda = view_problem = None
    probe_problem: Problem | None
    if isinstance(torch, Problem):
        probe, probe_problem = Nf4Probe(False, None, None, None, torch.what), torch
    else:
        cuda = torch.version.cuda
        gpus, bf16, view_problem = view_through_torch(torch, gpus)
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        reporter.note(f"probing NF4 on {device}")
        probe, probe_problem = probe_nf4(torch, device)
    own = {"python": platform.python_version(), "llmft": __version__}
    memory = psutil.virtual_memory()
    return Report(
        gpus=gpus,
        gpu_problem=absence.what if absence else None,
        nf4_probe=probe,
        versions=own | {library: version_of(library) for library in LIBRARIES} | {"cuda": cuda},
        bf16=bf16,
        memory=Memory(memory.total, memory.available),
        disks=[measure_disk(cache, "cache"), measure_disk(runs, "runs")],
        problems=[problem for problem in (absence, view_problem, probe_problem) if problem and problem.mend],
    )


def require_gpu(report: Report) -> None:
    """Hold that torch sees a GPU and that 4-bit weights compute right on it.

    Raises:
        MachineError: they do not; it says why and what mends it.
    """
    probe = report.nf4_probe
    on_gpu = (probe.device or "").startswith("cuda")
    if on_gpu and probe.ok:
        return
    if on_gpu:
        what = probe.problem
    elif report.gpus:
        what = report.problems[0].what
    else:
        what = report.gpu_problem
    mends = (problem.mend for problem in report.problems if problem.what == what)
    raise MachineError(f"no usable GPU: {what}", next(mends, NO_GPU_MEND))


def list_gpus() -> tuple[list[Gpu], Problem | None]:
    """The GPUs that nvidia-smi shows, or why there are none; a plain absence has an empty mend."""
    try:
        import GPUtil
    except ImportError as error:
        # GPUtil 1.4.0 imports distutils, which Python 3.12 dropped and setuptools brings back.
        package = "setuptools" if (error.name or "").startswith("distutils") else "GPUtil"
        what = f"GPUtil cannot list the GPUs on Python {platform.python_version()}: {error}"
        return [], Problem(what, f"pip install {package}")
    if shutil.which("nvidia-smi") is None:
        return [], Problem("nvidia-smi was not found on the PATH", "")
    try:
        gpus = [gpu_of(entry) for entry in GPUtil.getGPUs()]
    except (ValueError, IndexError, ArithmeticError) as error:
        # GPUtil parses whatever nvidia-smi prints: its message stands where the index was expected.
        said = str(error).partition("base 10: ")[2].strip("'\"") or str(error)
        return [], Problem(f"nvidia-smi: {said}", "" if said == "No devices were found" else DRIVER_MEND)
    return gpus, None if gpus else Problem("nvidia-smi lists no GPU", "")


def gpu_of(entry: Any) -> Gpu:
    """A `GPUtil.GPU`, whose memory is in MiB and whose unsupported figures are NaN."""
    total, free = (finite(mebibytes) for mebibytes in (entry.memoryTotal, entry.memoryFree))
    total_bytes, free_bytes = (None if size is None else int(size * BYTES_PER_MIB) for size in (total, free))
    load, temperature = finite(entry.load), finite(entry.temperature)
    return Gpu(entry.id, entry.name, entry.uuid, total_bytes, free_bytes, load, temperature, entry.driver)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def import_torch() -> ModuleType | Problem:
    try:
        import torch
    except ModuleNotFoundError as error:
        return Problem(f"{error.name} is not installed", f"pip install {error.name}")
    except (ImportError, OSError) as error:
        return Problem(f"torch cannot be imported: {first_line(error)}", "pip install --force-reinstall torch")
    return torch


def view_through_torch(torch: Any, gpus: list[Gpu]) -> tuple[list[Gpu], bool | None, Problem | None]:
    """The GPUs with what torch knows of them, whether its first computes in bf16, and what keeps torch from them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # torch counts cards through the driver even where CUDA cannot use them, hence the first question.
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            seen = [torch.cuda.get_device_properties(index) for index in range(count)]
        except RuntimeError as error:
            return gpus, None, Problem(f"torch cannot open the GPU: {first_line(error)}", DRIVER_MEND)
    if not seen:
        said = (first_line(warning.message) for warning in caught if "CUDA" in str(warning.message))
        return gpus, None, blindness(torch, gpus, next(said, None)) if gpus else None
    # By UUID: torch numbers only the cards in CUDA_VISIBLE_DEVICES, and the fastest first.
    known = {f"GPU-{card.uuid}": torch_fields(card) for card in seen}
    return [replace(gpu, **known.get(gpu.uuid, {})) for gpu in gpus], known[f"GPU-{seen[0].uuid}"]["bf16"], None


def torch_fields(card: Any) -> dict[str, Any]:
    # The bf16 units came with Ampere; torch's own answer counts emulation, which is too slow to train with.
    return {"compute_capability": f"{card.major}.{card.minor}", "bf16": card.major >= 8}


def blindness(torch: Any, gpus: list[Gpu], torch_said: str | None) -> Problem:
    """Why torch sees none of the GPUs that nvidia-smi shows."""
    what = f"nvidia-smi shows {len(gpus)} GPU(s), torch sees none"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return Problem(f"{what}: torch {torch.__version__} has no CUDA", "install a CUDA build of torch: https://pytorch.org")
    if torch_said:
        mend = f"update the NVIDIA driver ({gpus[0].driver}), or install a torch for an older CUDA than {torch.version.cuda}"
        return Problem(f"{what}: {torch_said}", mend)
    if visible is not None:
        return Problem(f"{what}: CUDA_VISIBLE_DEVICES is {visible!r}", "unset CUDA_VISIBLE_DEVICES")
    return Problem(what, DRIVER_MEND)


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
    return Nf4Probe(False, device, finite(product), finite(round_trip), what), Problem(what, probe_mend(torch))


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


def measure_disk(path: Path, purpose: Literal["cache", "runs"]) -> Disk:
    path = path.absolute()
    usage = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists()))
    return Disk(str(path), purpose, usage.free, usage.total)
