"""The build of torch that suits a driver and a GPU, and the line that installs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft_cli.gpu import torch_builds
from llmft_cli.gpu.torch_builds import cpu_line, has_kernels, install_line, mend, reinstall_line

INDEX = "https://download.pytorch.org/whl"
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


def test_the_tested_version_is_the_pinned_one() -> None:
    assert f"torch=={torch_builds.TESTED}" in CONSTRAINTS.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("torch", "driver", "capability", "expected"),
    [
        ("2.13.0+cpu", "13.2", None, "2.13.0+cu130"),
        ("2.13.0+cpu", "13.0", (9, 0), "2.13.0+cu130"),
        ("2.13.0+cpu", "12.8", (8, 6), "2.13.0+cu126"),
        ("2.11.0+cu130", "12.8", (8, 6), "2.11.0+cu128"),
        ("2.11.0", "12.9", (12, 0), "2.11.0+cu128"),
        # A driver runs later minor versions of its CUDA.
        ("2.11.0+cpu", "12.2", (7, 5), "2.11.0+cu126"),
        # Only the builds for CUDA 12.6 have kernels for Volta and Pascal.
        ("2.12.1+cu130", "13.0", (7, 0), "2.12.1+cu126"),
        ("2.11.0+cu128", "12.8", (6, 0), "2.11.0+cu126"),
        # Releases whose builds are not known.
        ("2.8.0+cu128", "13.0", (8, 0), "2.13.0+cu130"),
        ("2.14.0.dev20260701+cpu", "13.0", (8, 0), "2.13.0+cu130"),
    ],
)
def test_the_newest_build_that_driver_and_gpu_run(
    torch: str, driver: str, capability: tuple[int, int] | None, expected: str
) -> None:
    build = expected.partition("+")[2]
    line = f"pip install torch=={expected} --index-url {INDEX}/{build}"
    assert install_line(torch, driver, capability) == line
    assert mend(torch, driver, capability) == line


@pytest.mark.parametrize(
    ("driver", "capability", "expected"),
    [
        ("11.8", None, "update the NVIDIA driver to one that supports CUDA 12.6"),
        ("12.9", (12, 0), "update the NVIDIA driver to one that supports CUDA 13.0"),
        ("13.0", (3, 5), "find a torch build that supports this GPU: https://pytorch.org/get-started"),
    ],
)
def test_without_a_suitable_build(driver: str, capability: tuple[int, int] | None, expected: str) -> None:
    assert install_line("2.13.0", driver, capability) is None
    assert mend("2.13.0", driver, capability) == expected


def test_the_build_for_the_cpu() -> None:
    assert cpu_line("2.13.0+cu130") == f"pip install torch==2.13.0+cpu --index-url {INDEX}/cpu"


def test_the_same_build_again() -> None:
    """PyPI has none with a build in its version."""
    assert reinstall_line("2.13.0") == "pip install --force-reinstall torch==2.13.0"
    assert reinstall_line("2.11.0+cu128") == f"pip install --force-reinstall torch==2.11.0+cu128 --index-url {INDEX}/cu128"


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        (["sm_75", "sm_80", "sm_120"], [(7, 5), (8, 0), (8, 9), (12, 1)], [(7, 0), (9, 0), (10, 0)]),
        (["sm_86"], [(8, 6), (8, 9)], [(8, 0)]),
        (["sm_80", "compute_90"], [(8, 6), (9, 0), (12, 0)], [(7, 5)]),
        (["sm_90a", "sm_100f"], [(9, 0), (10, 0), (10, 3)], [(8, 9)]),
        ([], [], [(8, 0)]),
    ],
)
def test_kernels(architectures: list[str], runs: list[tuple[int, int]], does_not: list[tuple[int, int]]) -> None:
    assert all(has_kernels(architectures, capability) for capability in runs)
    assert not any(has_kernels(architectures, capability) for capability in does_not)
