"""The GPUs of this machine, as nvidia-smi and torch see them."""

from __future__ import annotations

import math
import os
import platform
import shutil
import warnings
from dataclasses import dataclass, replace
from typing import Any

from llmft_cli.errors import first_line
from llmft_cli.gpu.findings import Problem

BYTES_PER_MIB = 2**20
DRIVER_MEND = "see what `nvidia-smi` says; a driver that was updated or crashed needs a reboot"


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
