"""The GPUs as torch sees them, and why it sees none."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from machines import CARD, card, fake_torch

from llmft_cli.gpu import torch_view
from llmft_cli.gpu.gpus import DRIVER_MEND, MEMORY_MEND, Gpu, Listing
from llmft_cli.gpu.problem import Problem
from llmft_cli.gpu.torch_view import View, view_from_torch, why_unusable

ONE = Listing([CARD])


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_cards_are_matched_by_uuid() -> None:
    """torch numbers the fastest GPU first, and does not see what CUDA_VISIBLE_DEVICES hides."""
    hidden, old = replace(CARD, index=0, uuid="GPU-hidden"), replace(CARD, index=2, uuid="GPU-old")
    view = view_from_torch(fake_torch(card(uuid="old", major=7, minor=5), card()), Listing([hidden, CARD, old]))
    fields = [(gpu.device, gpu.compute_capability, gpu.bf16, gpu.lacks) for gpu in view.gpus]
    lacks = ["bf16", "FlashAttention"]
    assert fields == [(None, None, None, None), ("cuda:1", "9.0", True, []), ("cuda:0", "7.5", False, lacks)]
    assert (view.devices, view.bf16, view.problem) == (["cuda:0", "cuda:1"], False, None)


def test_a_card_that_only_torch_sees() -> None:
    """A container may lack nvidia-smi, and a MIG slice has its own UUID."""
    view = view_from_torch(fake_torch(card(uuid="alone")), Listing([], Problem("nvidia-smi was not found on the PATH", "")))
    gpu = Gpu(0, CARD.name, "GPU-alone", 80 * 2**30, None, None, None, None, "cuda:0", "9.0", True, lacks=[])
    assert view == View([gpu], ["cuda:0"], True, None)


def test_no_gpu_is_no_problem() -> None:
    assert view_from_torch(fake_torch(cuda=None), Listing([])) == View([], [], None, None)


CU126 = "pip install torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126"
CU130 = "pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130"
TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old"


@pytest.mark.parametrize(
    ("torch", "newest", "what", "mend"),
    [
        (fake_torch(cuda=None), None, "torch 2.13.0 is a build without CUDA", "install a CUDA build of torch: https://"),
        (fake_torch(cuda=None), "12.8", "torch 2.13.0 is a build without CUDA", CU126),
        (fake_torch(cuda=None), "13.1", "torch 2.13.0 is a build without CUDA", CU130),
        (
            fake_torch(complaint=TOO_OLD),
            "12.8",
            "driver 570.86.15 supports CUDA 12.8 at most, torch 2.13.0 needs 13.0",
            f"update the NVIDIA driver, or install a matching torch: {CU126}",
        ),
        (
            fake_torch(complaint=TOO_OLD),
            "11.4",
            "driver 570.86.15 supports CUDA 11.4 at most, torch 2.13.0 needs 13.0",
            "update the NVIDIA driver to one that supports CUDA 12.6",
        ),
        (
            fake_torch(complaint=TOO_OLD),
            None,
            TOO_OLD,
            "update the NVIDIA driver (570.86.15), or install torch for a CUDA version older than 13.0: https://",
        ),
        (fake_torch(complaint="CUDA unknown error"), "13.0", "CUDA unknown error", DRIVER_MEND),
    ],
)
def test_torch_sees_no_gpu(torch: Any, newest: str | None, what: str, mend: str) -> None:
    view = view_from_torch(torch, Listing([CARD], None, newest))
    assert (view.gpus, view.devices, view.bf16) == ([CARD], [], None)
    assert view.problem is not None
    assert view.problem.what == f"nvidia-smi shows 1 GPU(s), torch sees none: {what}"
    assert view.problem.mend.startswith(mend)


@pytest.mark.parametrize(
    ("architecture", "newest", "mend"),
    [
        ("Volta", "13.0", CU126),
        ("Turing", "13.0", CU130),
        ("Blackwell", "12.8", "update the NVIDIA driver to one that supports CUDA 13.0"),
        ("Rubin", "13.5", CU130),
    ],
)
def test_the_build_for_a_gpu_that_torch_does_not_see(architecture: str, newest: str, mend: str) -> None:
    """nvidia-smi reports the architecture, which decides which builds have kernels."""
    view = view_from_torch(fake_torch(cuda=None), Listing([replace(CARD, architecture=architecture)], None, newest))
    assert view.problem is not None
    assert view.problem.mend == mend


def unusable(torch: Any, capability: str, newest: str | None = "13.0") -> Problem | None:
    return why_unusable(torch, replace(CARD, compute_capability=capability), newest)


def test_a_gpu_that_torch_has_kernels_for() -> None:
    assert [unusable(fake_torch(), capability) for capability in ("7.5", "8.9", "9.0", "12.1", "13.0")] == [None] * 5


@pytest.mark.parametrize("newest", ["13.0", None])
def test_a_gpu_that_torch_has_no_kernels_for(newest: str | None) -> None:
    problem = unusable(fake_torch(architectures=["sm_75", "sm_80"]), "7.0", newest)
    what = "torch 2.13.0 has no kernels for GPU 0 (NVIDIA H100 80GB HBM3, compute capability 7.0), only for sm_75, sm_80"
    assert problem == Problem(what, CU126)


def test_a_gpu_that_is_too_old_for_any_training() -> None:
    what = "GPU 0 (NVIDIA H100 80GB HBM3) is too old: NF4 needs compute capability 6.0"
    problem = unusable(fake_torch(architectures=["sm_50"]), "5.2")
    assert problem is not None
    assert problem.what == what
    assert problem.mend.endswith("export CUDA_VISIBLE_DEVICES=")
    # Without CUDA in torch, no other build is suggested for it.
    assert (
        view_from_torch(fake_torch(cuda=None), Listing([replace(CARD, architecture="Maxwell")], None, "12.8")).problem
        == problem
    )


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_gpus_hidden_by_the_environment(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    what = f"nvidia-smi shows 1 GPU(s), torch sees none: CUDA_VISIBLE_DEVICES is '{visible}'"
    # A CUDA version newer than the driver's is no problem by itself: CUDA has compatibility packages.
    view = view_from_torch(fake_torch(cuda="13.0"), Listing([CARD], None, "12.8"))
    assert view.problem == Problem(what, "unset CUDA_VISIBLE_DEVICES")


def test_torch_sees_no_gpu_without_a_reason() -> None:
    view = view_from_torch(fake_torch(), Listing([CARD], None, "13.1"))
    assert view.problem == Problem("nvidia-smi shows 1 GPU(s), torch sees none", DRIVER_MEND)


@pytest.mark.parametrize(("said", "mend"), [("device busy", DRIVER_MEND), ("out of memory", MEMORY_MEND)])
def test_card_that_cannot_be_opened(said: str, mend: str) -> None:
    def busy(index: int) -> None:
        raise RuntimeError(f"CUDA error: {said}\nCompile with TORCH_USE_CUDA_DSA")

    torch = fake_torch(card())
    torch.cuda.get_device_properties = busy
    problem = Problem(f"torch cannot open the GPU: CUDA error: {said}", mend)
    assert view_from_torch(torch, ONE) == View([CARD], [], None, problem)


def test_torch_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    what = "torch cannot be imported: libcudart.so.13: cannot open shared object file"
    assert torch_view.import_torch() == Problem(what, "pip install --force-reinstall torch")
