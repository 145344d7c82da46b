"""The GPUs as torch sees them, and what keeps it from them or from computing on one."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from llmft_cli.base.errors import first_line
from llmft_cli.gpu import torch_builds
from llmft_cli.gpu.capabilities import FIRST_OF, FIRST_USABLE, lacking, read, written
from llmft_cli.gpu.gpus import DRIVER_MEND, MEMORY_MEND, Gpu, Listing
from llmft_cli.gpu.problem import Problem
from llmft_cli.settings.compute_types import FIRST_WITH_BF16


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
    capability = (card.major, card.minor)
    return {
        "device": device,
        "compute_capability": written(capability),
        # torch's own answer counts emulation, which is too slow to train with.
        "bf16": capability >= FIRST_WITH_BF16,
        "lacks": lacking(capability),
    }


def mend_of(error: RuntimeError) -> str:
    return MEMORY_MEND if "out of memory" in str(error) else DRIVER_MEND


def blindness(torch: Any, listing: Listing, torch_said: str | None) -> Problem:
    """Why torch sees none of the GPUs that nvidia-smi shows."""
    what = f"nvidia-smi shows {len(listing.gpus)} GPU(s), torch sees none"
    cuda, newest = torch.version.cuda, listing.newest_cuda
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    capability = FIRST_OF.get(listing.gpus[0].architecture or "")
    if capability and capability < FIRST_USABLE:
        return too_old(listing.gpus[0])
    if cuda is None:
        build = f"install a CUDA build of torch: {torch_builds.GET_STARTED}"
        mend = torch_builds.mend(torch.__version__, newest, capability) if newest else build
        return Problem(f"{what}: torch {torch.__version__} is a build without CUDA", mend)
    if visible is not None and not torch_said:
        return Problem(f"{what}: CUDA_VISIBLE_DEVICES is {visible!r}", "unset CUDA_VISIBLE_DEVICES")
    driver = listing.gpus[0].driver
    if newest and read(newest) < read(cuda):
        what = f"{what}: driver {driver} supports CUDA {newest} at most, torch {torch.__version__} needs {cuda}"
        line = torch_builds.install_line(torch.__version__, newest, capability)
        either = f"update the NVIDIA driver, or install a torch for it: {line}"
        return Problem(what, either if line else torch_builds.mend(torch.__version__, newest, capability))
    if torch_said and not newest:
        older = f"install a torch for an older CUDA than {cuda}: {torch_builds.GET_STARTED}"
        return Problem(f"{what}: {torch_said}", f"update the NVIDIA driver ({driver}), or {older}")
    return Problem(f"{what}: {torch_said}" if torch_said else what, DRIVER_MEND)


def why_unusable(torch: Any, gpu: Gpu, newest_cuda: str | None) -> Problem | None:
    """Why a GPU that torch sees cannot compute: too old for bitsandbytes, or torch has no kernels for it.

    To be asked before anything is tried: a kernel that is missing in bitsandbytes' library ends the whole program.

    Args:
        newest_cuda: that the driver supports, None if unknown.
    """
    assert gpu.compute_capability is not None
    capability = read(gpu.compute_capability)
    if capability < FIRST_USABLE:
        return too_old(gpu)
    architectures = torch.cuda.get_arch_list()
    if torch_builds.has_kernels(architectures, capability):
        return None
    who = f"GPU {gpu.index} ({gpu.name}, compute capability {gpu.compute_capability})"
    what = f"torch {torch.__version__} has no kernels for {who}, only for {', '.join(architectures)}"
    # Where nvidia-smi does not tell, the driver supports the CUDA with which torch saw the GPU.
    return Problem(what, torch_builds.mend(torch.__version__, newest_cuda or torch.version.cuda, capability))


def too_old(gpu: Gpu) -> Problem:
    what = f"GPU {gpu.index} ({gpu.name}) is too old: NF4 needs compute capability {written(FIRST_USABLE)}"
    return Problem(what, "choose another GPU with CUDA_VISIBLE_DEVICES, or the CPU: export CUDA_VISIBLE_DEVICES=")
