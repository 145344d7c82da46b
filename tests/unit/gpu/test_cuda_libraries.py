"""How the CUDA of torch and bitsandbytes match, and what mends it where they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from machines import fake_torch

from llmft_cli.base.libraries import import_bitsandbytes, version_of
from llmft_cli.gpu.cuda_libraries import bitsandbytes_cuda, bitsandbytes_library, mismatch

BITSANDBYTES = f"bitsandbytes {version_of('bitsandbytes')}"


class Mock:
    def __init__(self, message: str) -> None:
        self.error_msg = message

    def __getattr__(self, name: str) -> Any:
        return lambda: name


def fake_bitsandbytes(library: str | None = None, said: str = "") -> Any:
    lib = SimpleNamespace(_lib=SimpleNamespace(_name=f"/site/bitsandbytes/{library}")) if library else Mock(said)
    return SimpleNamespace(cextension=SimpleNamespace(lib=lib, ErrorHandlerMockBNBNativeLibrary=Mock))


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BNB_CUDA_VERSION", raising=False)


@pytest.mark.parametrize(("library", "cuda"), [("cuda130", "13.0"), ("cuda118", "11.8"), ("cuda1210", "12.10"), ("cpu", None)])
def test_the_name_of_the_library_tells_its_cuda(library: str, cuda: str | None) -> None:
    assert bitsandbytes_cuda(fake_bitsandbytes(f"libbitsandbytes_{library}.so")) == cuda


def test_of_the_real_bitsandbytes() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is None:
        assert bitsandbytes_library(import_bitsandbytes()) == "libbitsandbytes_cpu.so"


@pytest.mark.parametrize(("torchs", "library"), [("13.0", "cuda130"), ("13.1", "cuda130"), ("12.6", "cuda128")])
def test_minor_versions_are_compatible(torchs: str, library: str) -> None:
    assert mismatch(fake_torch(cuda=torchs), fake_bitsandbytes(f"libbitsandbytes_{library}.so")) is None


MISSING = "No compatible CUDA binary found at /site/bitsandbytes/libbitsandbytes_cuda140.so\nmore"
NO_RUNTIME = "libcudart.so.13: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("bitsandbytes", "override", "what", "mend"),
    [
        (
            fake_bitsandbytes("libbitsandbytes_cuda128.so"),
            "128",
            "uses its CUDA 12.8 library, but torch 2.13.0 is built for CUDA 13.0 (BNB_CUDA_VERSION is '128')",
            "unset BNB_CUDA_VERSION",
        ),
        (
            fake_bitsandbytes("libbitsandbytes_cpu.so"),
            None,
            "uses its CPU library, although torch sees a GPU",
            "pip install --upgrade --force-reinstall --no-deps bitsandbytes",
        ),
        (
            fake_bitsandbytes(said=MISSING),
            None,
            f"cannot load a library for CUDA 13.0: {MISSING.splitlines()[0]}",
            "pip install --upgrade --force-reinstall --no-deps bitsandbytes",
        ),
        (
            fake_bitsandbytes(said=MISSING),
            "999",
            f"cannot load a library for CUDA 13.0: {MISSING.splitlines()[0]} (BNB_CUDA_VERSION is '999')",
            "unset BNB_CUDA_VERSION",
        ),
        (
            fake_bitsandbytes(said=NO_RUNTIME),
            None,
            f"cannot load a library for CUDA 13.0: {NO_RUNTIME}",
            "pip install --force-reinstall torch==2.13.0, or add the lib folder of CUDA 13.x to LD_LIBRARY_PATH",
        ),
    ],
)
def test_what_does_not_match(
    monkeypatch: pytest.MonkeyPatch, bitsandbytes: Any, override: str | None, what: str, mend: str
) -> None:
    if override is not None:
        monkeypatch.setenv("BNB_CUDA_VERSION", override)
    problem = mismatch(fake_torch(), bitsandbytes)
    assert problem is not None
    assert (problem.what, problem.mend) == (f"{BITSANDBYTES} {what}", mend)
