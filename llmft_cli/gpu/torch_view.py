"""The GPUs as torch sees them, and what keeps it from them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from llmft_cli.errors import first_line
from llmft_cli.gpu.findings import Problem
from llmft_cli.gpu.gpus import DRIVER_MEND, MEMORY_MEND, Gpu, Listing

BUILDS = "https://pytorch.org/get-started"


@dataclass(frozen=True)
class View:
    """The GPUs with what torch knows of them, and torch's devices in its own order.

    `bf16` tells whether the first device computes in bf16, None where torch sees none.
    """

    gpus: list[Gpu]
    devices: list[str]
    bf16: bool | None
    problem: Problem | None


def import_torch() -> ModuleType | Problem:
    try:
        import torch
    except ModuleNotFoundError as error:
        return Problem(f"{error.name} is not installed", f"pip install {error.name}")
    except (ImportError, OSError) as error:
        return Problem(f"torch cannot be imported: {first_line(error)}", "pip install --force-reinstall torch")
    return torch


def view_through_torch(torch: Any, listing: Listing) -> View:
    """Ask torch for its devices, and match them with the listed GPUs.

    It opens no card, on which a full one might hang: torch counts the cards and reads their properties without a
    CUDA context. Tensors, events, `mem_get_info` and making a device the current one would create it.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # torch counts cards through the driver even where CUDA cannot use them, hence the first question.
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            seen = [torch.cuda.get_device_properties(index) for index in range(count)]
        except RuntimeError as error:
            return View(listing.gpus, [], None, Problem(f"torch cannot open the GPU: {first_line(error)}", mend_of(error)))
    if not seen:
        said = next((first_line(warning.message) for warning in caught if "CUDA" in str(warning.message)), None)
        return View(listing.gpus, [], None, blindness(torch, listing, said) if listing.gpus else None)
    # By UUID: torch numbers only the cards in CUDA_VISIBLE_DEVICES, and the fastest first.
    known = {f"GPU-{card.uuid}": torch_fields(card, f"cuda:{number}") for number, card in enumerate(seen)}
    gpus = [replace(gpu, **known.get(gpu.uuid, {})) for gpu in listing.gpus]
    # Slices of a card (MIG), and cards where there is no nvidia-smi.
    unlisted = [card for card in seen if f"GPU-{card.uuid}" not in {gpu.uuid for gpu in gpus}]
    for card in unlisted:
        bare = Gpu(len(gpus), card.name, f"GPU-{card.uuid}", card.total_memory, None, None, None, None)
        gpus.append(replace(bare, **known[bare.uuid]))
    return View(gpus, [fields["device"] for fields in known.values()], known[f"GPU-{seen[0].uuid}"]["bf16"], None)


def torch_fields(card: Any, device: str) -> dict[str, Any]:
    # The bf16 units came with Ampere; torch's own answer counts emulation, which is too slow to train with.
    return {"device": device, "compute_capability": f"{card.major}.{card.minor}", "bf16": card.major >= 8}


def mend_of(error: RuntimeError) -> str:
    return MEMORY_MEND if "out of memory" in str(error) else DRIVER_MEND


def blindness(torch: Any, listing: Listing, torch_said: str | None) -> Problem:
    """Why torch sees none of the GPUs that nvidia-smi shows."""
    what = f"nvidia-smi shows {len(listing.gpus)} GPU(s), torch sees none"
    cuda, newest = torch.version.cuda, listing.newest_cuda
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if cuda is None:
        mend = f"install a torch for CUDA {newest} or older: {BUILDS}" if newest else f"install a CUDA build of torch: {BUILDS}"
        return Problem(f"{what}: torch {torch.__version__} has no CUDA", mend)
    if visible is not None and not torch_said:
        return Problem(f"{what}: CUDA_VISIBLE_DEVICES is {visible!r}", "unset CUDA_VISIBLE_DEVICES")
    driver = listing.gpus[0].driver
    if newest and version(newest) < version(cuda):
        what = f"{what}: driver {driver} supports CUDA {newest} at most, torch {torch.__version__} needs {cuda}"
        return Problem(what, f"update the NVIDIA driver, or install a torch for CUDA {newest} or older: {BUILDS}")
    if torch_said and not newest:
        mend = f"update the NVIDIA driver ({driver}), or install a torch for an older CUDA than {cuda}: {BUILDS}"
        return Problem(f"{what}: {torch_said}", mend)
    return Problem(f"{what}: {torch_said}" if torch_said else what, DRIVER_MEND)


def version(text: str) -> tuple[int, ...]:
    """A version of numbers and points, to be compared."""
    return tuple(map(int, text.split(".")))
