"""The GPUs as torch sees them, and why torch cannot see or use one."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from llmft_cli.base.errors import first_line
from llmft_cli.gpu import torch_builds
from llmft_cli.gpu.capabilities import FIRST_OF, FIRST_USABLE, format_version, lacking, parse_version
from llmft_cli.gpu.gpus import DRIVER_MEND, MEMORY_MEND, Gpu, Listing
from llmft_cli.gpu.problem import Problem
from llmft_cli.settings.compute_types import FIRST_WITH_BF16


@dataclass(frozen=True)
class View:
    """The GPUs with torch's details, and torch's devices in torch's order.

    `bf16` says whether the first device supports bf16, None if torch sees no GPU.
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


def view_from_torch(torch: Any, listing: Listing) -> View:
    """Match torch's devices with the listed GPUs.

    This creates no CUDA context, because that may hang on a full GPU. torch needs none to count GPUs and read their
    properties; tensors, events, `mem_get_info` and `set_device` would create one.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Check is_available first: device_count also counts GPUs that CUDA cannot use.
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            seen = [torch.cuda.get_device_properties(index) for index in range(count)]
        except RuntimeError as error:
            return View(listing.gpus, [], None, Problem(f"torch cannot open the GPU: {first_line(error)}", fix_for(error)))
    if not seen:
        said = next((first_line(warning.message) for warning in caught if "CUDA" in str(warning.message)), None)
        return View(listing.gpus, [], None, no_devices_problem(torch, listing, said) if listing.gpus else None)
    # Match by UUID: torch numbers only the GPUs in CUDA_VISIBLE_DEVICES, fastest first.
    known = {f"GPU-{properties.uuid}": torch_fields(properties, f"cuda:{number}") for number, properties in enumerate(seen)}
    gpus = [replace(gpu, **known.get(gpu.uuid, {})) for gpu in listing.gpus]
    # MIG slices, and all GPUs if there is no nvidia-smi.
    unlisted = [properties for properties in seen if f"GPU-{properties.uuid}" not in {gpu.uuid for gpu in gpus}]
    for properties in unlisted:
        bare = Gpu(len(gpus), properties.name, f"GPU-{properties.uuid}", properties.total_memory, None, None, None, None)
        gpus.append(replace(bare, **known[bare.uuid]))
    return View(gpus, [fields["device"] for fields in known.values()], known[f"GPU-{seen[0].uuid}"]["bf16"], None)


def torch_fields(properties: Any, device: str) -> dict[str, Any]:
    capability = (properties.major, properties.minor)
    return {
        "device": device,
        "compute_capability": format_version(capability),
        # torch.cuda.is_bf16_supported() also counts emulation, which is too slow to train with.
        "bf16": capability >= FIRST_WITH_BF16,
        "lacks": lacking(capability),
    }


def fix_for(error: RuntimeError) -> str:
    return MEMORY_MEND if "out of memory" in str(error) else DRIVER_MEND


def no_devices_problem(torch: Any, listing: Listing, torch_said: str | None) -> Problem:
    """Why torch sees none of the GPUs that nvidia-smi shows."""
    what = f"nvidia-smi shows {len(listing.gpus)} GPU(s), torch sees none"
    cuda, newest = torch.version.cuda, listing.newest_cuda
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    capability = FIRST_OF.get(listing.gpus[0].architecture or "")
    if capability and capability < FIRST_USABLE:
        return too_old_problem(listing.gpus[0])
    if cuda is None:
        build = f"install a CUDA build of torch: {torch_builds.GET_STARTED}"
        mend = torch_builds.mend(torch.__version__, newest, capability) if newest else build
        return Problem(f"{what}: torch {torch.__version__} is a build without CUDA", mend)
    if visible is not None and not torch_said:
        return Problem(f"{what}: CUDA_VISIBLE_DEVICES is {visible!r}", "unset CUDA_VISIBLE_DEVICES")
    driver = listing.gpus[0].driver
    if newest and parse_version(newest) < parse_version(cuda):
        what = f"{what}: driver {driver} supports CUDA {newest} at most, torch {torch.__version__} needs {cuda}"
        line = torch_builds.install_line(torch.__version__, newest, capability)
        either = f"update the NVIDIA driver, or install a matching torch: {line}"
        return Problem(what, either if line else torch_builds.mend(torch.__version__, newest, capability))
    if torch_said and not newest:
        older = f"install torch for a CUDA version older than {cuda}: {torch_builds.GET_STARTED}"
        return Problem(f"{what}: {torch_said}", f"update the NVIDIA driver ({driver}), or {older}")
    return Problem(f"{what}: {torch_said}" if torch_said else what, DRIVER_MEND)


def why_unusable(torch: Any, gpu: Gpu, newest_cuda: str | None) -> Problem | None:
    """Why training cannot use a GPU that torch sees: too old for bitsandbytes, or torch has no kernels for it.

    Check this before running anything: a kernel that is missing from bitsandbytes' library aborts the process.

    Args:
        newest_cuda: the newest version that the driver supports, None if unknown.
    """
    assert gpu.compute_capability is not None
    capability = parse_version(gpu.compute_capability)
    if capability < FIRST_USABLE:
        return too_old_problem(gpu)
    architectures = torch.cuda.get_arch_list()
    if torch_builds.has_kernels(architectures, capability):
        return None
    who = f"GPU {gpu.index} ({gpu.name}, compute capability {gpu.compute_capability})"
    what = f"torch {torch.__version__} has no kernels for {who}, only for {', '.join(architectures)}"
    # If nvidia-smi does not report it, the driver at least supports the CUDA with which torch saw the GPU.
    return Problem(what, torch_builds.mend(torch.__version__, newest_cuda or torch.version.cuda, capability))


def too_old_problem(gpu: Gpu) -> Problem:
    what = f"GPU {gpu.index} ({gpu.name}) is too old: NF4 needs compute capability {format_version(FIRST_USABLE)}"
    return Problem(what, "select another GPU with CUDA_VISIBLE_DEVICES, or use the CPU: export CUDA_VISIBLE_DEVICES=")
