"""Which builds of torch there are, and the line that installs the one for a driver and a GPU."""

from __future__ import annotations

import re
from collections.abc import Collection

from llmft_cli.gpu.capabilities import Capability, read

GET_STARTED = "https://pytorch.org/get-started"
INDEX = "https://download.pytorch.org/whl"
# What constraints.txt pins; named where the installed torch is not one of RELEASES.
TESTED = "2.13.0"
# The CUDA versions that each release is built for, the oldest first, and the GPUs that each build has kernels for: from
# a compute capability on, to a major number. From "Release Compatibility Matrix" and "PyTorch CUDA Support Matrix" in
# RELEASE.md of github.com/pytorch/pytorch (2.11: pull requests 175253 and 172352; 2.12 to 2.14: 182849 and 197555).
# CUDA 13.2, built for since 2.12, is left out: it serves no GPU that 13.0 does not, and asks for a newer driver.
RELEASES = {
    "2.11": ("12.6", "12.8", "13.0"),
    "2.12": ("12.6", "13.0"),
    "2.13": ("12.6", "13.0"),
    "2.14": ("12.6", "13.0"),
}
KERNELS: dict[str, tuple[Capability, int]] = {"12.6": ((5, 0), 9), "12.8": ((7, 5), 12), "13.0": ((7, 5), 12)}


def mend(torch_version: str, newest_cuda: str, capability: Capability | None) -> str:
    """What brings a torch that computes on the GPU: the right build, or first a newer driver."""
    if line := install_line(torch_version, newest_cuda, capability):
        return line
    _release, suited = suited_builds(torch_version, capability)
    if suited:
        return f"update the NVIDIA driver to one that supports CUDA {suited[0]}"
    return f"look for a torch with kernels for this GPU: {GET_STARTED}"


def install_line(torch_version: str, newest_cuda: str, capability: Capability | None) -> str | None:
    """What installs a CUDA build for a driver and a GPU; None where the driver is too old for all that suit the GPU.

    Args:
        newest_cuda: that the driver supports.
        capability: of the GPU, None if unknown.
    """
    release, suited = suited_builds(torch_version, capability)
    known = [cuda for cuda in suited if read(cuda) <= read(newest_cuda)]
    # Drivers run later minor versions of their own CUDA too (NVIDIA's "minor version compatibility").
    later = [cuda for cuda in suited if read(cuda)[0] == read(newest_cuda)[0]]
    chosen = known[-1:] or later[:1]
    return pip_line(release, f"cu{chosen[0].replace('.', '')}") if chosen else None


def suited_builds(torch_version: str, capability: Capability | None) -> tuple[str, list[str]]:
    """The version of torch to install, and the CUDA versions whose builds have kernels for the GPU."""
    release = release_of(torch_version)
    builds = RELEASES[minor_release(release)]
    return release, [cuda for cuda in builds if capability is None or has_build(cuda, capability)]


def has_build(cuda: str, capability: Capability) -> bool:
    first, last_major = KERNELS[cuda]
    return first <= capability and capability[0] <= last_major


def cpu_line(torch_version: str) -> str:
    return pip_line(release_of(torch_version), "cpu")


def reinstall_line(torch_version: str) -> str:
    """What installs the same torch again, with the libraries that it needs."""
    build = torch_version.partition("+")[2]
    # PyPI has no versions with a build in them.
    return f"pip install --force-reinstall torch=={torch_version}" + (f" --index-url {INDEX}/{build}" if build else "")


def pip_line(release: str, build: str) -> str:
    # With the build in the version: pip takes an installed 2.13.0+cpu for 2.13.0, and would leave it in place.
    return f"pip install torch=={release}+{build} --index-url {INDEX}/{build}"


def release_of(torch_version: str) -> str:
    """2.11.0 of "2.11.0+cpu", where it is a release whose builds are known, else the tested one."""
    release = torch_version.partition("+")[0]
    return release if re.fullmatch(r"\d+\.\d+\.\d+", release) and minor_release(release) in RELEASES else TESTED


def minor_release(release: str) -> str:
    return release.rpartition(".")[0]


def has_kernels(architectures: Collection[str], capability: Capability) -> bool:
    """Whether a torch that was built for these ("sm_75", "compute_120") runs on a GPU.

    Machine code (sm) runs on later GPUs of the same major number, PTX (compute) on all later ones.
    """
    for architecture in architectures:
        kind, major, minor = re.match(r"(sm|compute)_(\d+)(\d)", architecture).groups()  # type: ignore[union-attr]
        built_for = int(major), int(minor)
        if built_for <= capability and (kind == "compute" or built_for[0] == capability[0]):
            return True
    return False
