"""torch's builds, and the pip command that installs the right one for a driver and a GPU."""

from __future__ import annotations

import re
from collections.abc import Collection

from llmft_cli.gpu.capabilities import Capability, parse_version

GET_STARTED = "https://pytorch.org/get-started"
INDEX = "https://download.pytorch.org/whl"
# The version in constraints.txt; suggested if the installed torch is not in RELEASES.
TESTED = "2.13.0"
# RELEASES: the CUDA versions that each release is built for, oldest first. KERNELS: the GPUs that each build supports,
# from a compute capability to a major version. From "Release Compatibility Matrix" and "PyTorch CUDA Support Matrix" in
# RELEASE.md of github.com/pytorch/pytorch (2.11: pull requests 175253 and 172352; 2.12 to 2.14: 182849 and 197555).
# CUDA 13.2, available since 2.12, is left out: it supports no more GPUs than 13.0 and needs a newer driver.
RELEASES = {
    "2.11": ("12.6", "12.8", "13.0"),
    "2.12": ("12.6", "13.0"),
    "2.13": ("12.6", "13.0"),
    "2.14": ("12.6", "13.0"),
}
KERNELS: dict[str, tuple[Capability, int]] = {"12.6": ((5, 0), 9), "12.8": ((7, 5), 12), "13.0": ((7, 5), 12)}


def mend(torch_version: str, newest_cuda: str, capability: Capability | None) -> str:
    """How to get a torch that supports the GPU: install the right build, or update the driver first."""
    if line := install_line(torch_version, newest_cuda, capability):
        return line
    _release, suited = suited_builds(torch_version, capability)
    if suited:
        return f"update the NVIDIA driver to one that supports CUDA {suited[0]}"
    return f"find a torch build that supports this GPU: {GET_STARTED}"


def install_line(torch_version: str, newest_cuda: str, capability: Capability | None) -> str | None:
    """The pip command for a CUDA build that suits driver and GPU; None if the driver is too old for all of them.

    Args:
        newest_cuda: the newest version that the driver supports.
        capability: the GPU's compute capability, None if unknown.
    """
    release, suited = suited_builds(torch_version, capability)
    known = [cuda for cuda in suited if parse_version(cuda) <= parse_version(newest_cuda)]
    # Drivers also run later minor versions of the same CUDA (NVIDIA's "minor version compatibility").
    later = [cuda for cuda in suited if parse_version(cuda)[0] == parse_version(newest_cuda)[0]]
    chosen = known[-1:] or later[:1]
    return pip_line(release, f"cu{chosen[0].replace('.', '')}") if chosen else None


def suited_builds(torch_version: str, capability: Capability | None) -> tuple[str, list[str]]:
    """The torch version to install, and the CUDA versions whose builds support the GPU."""
    release = release_of(torch_version)
    builds = RELEASES[minor_release(release)]
    return release, [cuda for cuda in builds if capability is None or has_build(cuda, capability)]


def has_build(cuda: str, capability: Capability) -> bool:
    first, last_major = KERNELS[cuda]
    return first <= capability and capability[0] <= last_major


def cpu_line(torch_version: str) -> str:
    return pip_line(release_of(torch_version), "cpu")


def reinstall_line(torch_version: str) -> str:
    """The pip command that reinstalls the same torch with its dependencies."""
    build = torch_version.partition("+")[2]
    # PyPI has no versions with a build suffix.
    return f"pip install --force-reinstall torch=={torch_version}" + (f" --index-url {INDEX}/{build}" if build else "")


def pip_line(release: str, build: str) -> str:
    # The build suffix is needed: for 2.13.0 alone, pip would keep an installed 2.13.0+cpu.
    return f"pip install torch=={release}+{build} --index-url {INDEX}/{build}"


def release_of(torch_version: str) -> str:
    """ "2.11.0" of "2.11.0+cpu" if its builds are known, else the tested release."""
    release = torch_version.partition("+")[0]
    return release if re.fullmatch(r"\d+\.\d+\.\d+", release) and minor_release(release) in RELEASES else TESTED


def minor_release(release: str) -> str:
    return release.rpartition(".")[0]


def has_kernels(architectures: Collection[str], capability: Capability) -> bool:
    """Whether a torch built for these architectures ("sm_75", "compute_120") runs on a GPU.

    Machine code (sm) runs on later GPUs of the same major version, PTX (compute) on all later GPUs.
    """
    for architecture in architectures:
        kind, major, minor = re.match(r"(sm|compute)_(\d+)(\d)", architecture).groups()  # type: ignore[union-attr]
        built_for = int(major), int(minor)
        if built_for <= capability and (kind == "compute" or built_for[0] == capability[0]):
            return True
    return False
