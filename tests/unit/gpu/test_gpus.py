"""What nvidia-smi and torch say of the GPUs, and what they say when they are broken."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from machines import CARD, LINE, card, entry, fake_torch

from llmft_cli.gpu import gpus as gpu
from llmft_cli.gpu.findings import Problem
from llmft_cli.gpu.gpus import Gpu


class TestListing:
    def test_fields(self, fake_gputil: Any) -> None:
        fake_gputil(entry())
        assert gpu.list_gpus() == ([CARD], None)

    def test_what_a_card_does_not_tell_is_none(self, fake_gputil: Any) -> None:
        nan = float("nan")
        fake_gputil(entry(load=nan, temperature=nan, memoryTotal=nan, memoryFree=nan))
        mute = replace(CARD, load=None, temperature_celsius=None, memory_total_bytes=None, memory_free_bytes=None)
        assert gpu.list_gpus() == ([mute], None)

    @pytest.mark.parametrize("error", [ValueError("odd"), IndexError("odd"), ZeroDivisionError("odd")])
    def test_gputil_raises(self, fake_gputil: Any, error: Exception) -> None:
        fake_gputil(error=error)
        assert gpu.list_gpus() == ([], Problem("nvidia-smi: odd", gpu.DRIVER_MEND))

    def test_empty(self, fake_gputil: Any) -> None:
        fake_gputil()
        assert gpu.list_gpus() == ([], Problem("nvidia-smi lists no GPU", ""))

    @pytest.mark.parametrize(("missing", "package"), [("distutils", "setuptools"), ("GPUtil", "GPUtil")])
    def test_not_importable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, package: str) -> None:
        (tmp_path / "GPUtil.py").write_text(f"raise ModuleNotFoundError(\"No module named '{missing}'\", name='{missing}')")
        monkeypatch.delitem(sys.modules, "GPUtil", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        gpus, problem = gpu.list_gpus()
        assert gpus == []
        assert problem is not None
        assert problem.what.endswith(f"No module named '{missing}'")
        assert problem.mend == f"pip install {package}"


class TestListingThroughGputil:
    def test_two_cards(self, nvidia_smi: Any) -> None:
        other = "1, GPU-2, [N/A], [N/A], [N/A], [N/A], 570.86.15, NVIDIA GB10, [N/A], Disabled, Disabled, [N/A]"
        nvidia_smi(f"{LINE}\n{other}")
        assert gpu.list_gpus() == ([CARD, Gpu(1, "NVIDIA GB10", "GPU-2", None, None, None, None, "570.86.15")], None)

    def test_no_devices(self, nvidia_smi: Any) -> None:
        nvidia_smi("No devices were found", code=6)
        assert gpu.list_gpus() == ([], Problem("nvidia-smi: No devices were found", ""))

    def test_driver_does_not_answer(self, nvidia_smi: Any) -> None:
        said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
        nvidia_smi(said, code=9)
        assert gpu.list_gpus() == ([], Problem(f"nvidia-smi: {said}", gpu.DRIVER_MEND))

    @pytest.mark.parametrize("output", ["0, GPU-1", LINE.replace("81559", "0"), "garbage"])
    def test_odd_output(self, nvidia_smi: Any, output: str) -> None:
        nvidia_smi(output)
        gpus, problem = gpu.list_gpus()
        assert gpus == []
        assert problem is not None
        assert problem.mend == gpu.DRIVER_MEND

    def test_no_nvidia_smi(self, nvidia_smi: Any) -> None:
        assert gpu.list_gpus() == ([], Problem("nvidia-smi was not found on the PATH", ""))


class TestTorchsView:
    def test_cards_are_matched_by_uuid(self) -> None:
        hidden = replace(CARD, index=0, uuid="GPU-hidden")
        torch = fake_torch(card(uuid="old", major=7, minor=5), card())
        gpus, bf16, problem = gpu.view_through_torch(torch, [hidden, CARD, replace(CARD, uuid="GPU-old")])
        assert [(item.compute_capability, item.bf16) for item in gpus] == [(None, None), ("9.0", True), ("7.5", False)]
        assert bf16 is False
        assert problem is None

    def test_no_gpu_is_no_problem(self) -> None:
        assert gpu.view_through_torch(fake_torch(cuda=None), []) == ([], None, None)

    @pytest.mark.parametrize(
        ("visible", "torch", "what", "mend"),
        [
            (None, fake_torch(cuda=None), ": torch 2.13.0 has no CUDA", "install a CUDA build of torch: https://pytorch.org"),
            ("", fake_torch(), ": CUDA_VISIBLE_DEVICES is ''", "unset CUDA_VISIBLE_DEVICES"),
            (
                "0",
                fake_torch(complaint="CUDA initialization: The NVIDIA driver on your system is too old"),
                ": CUDA initialization: The NVIDIA driver on your system is too old",
                "update the NVIDIA driver (570.86.15), or install a torch for an older CUDA than 13.0",
            ),
            (None, fake_torch(), "", gpu.DRIVER_MEND),
        ],
    )
    def test_blind(self, monkeypatch: pytest.MonkeyPatch, visible: str | None, torch: Any, what: str, mend: str) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        problem = Problem(f"nvidia-smi shows 1 GPU(s), torch sees none{what}", mend)
        assert gpu.view_through_torch(torch, [CARD]) == ([CARD], None, problem)

    def test_card_that_cannot_be_opened(self) -> None:
        def busy(index: int) -> None:
            raise RuntimeError("CUDA error: device busy\nCompile with TORCH_USE_CUDA_DSA")

        torch = fake_torch(card())
        torch.cuda.get_device_properties = busy
        problem = Problem("torch cannot open the GPU: CUDA error: device busy", gpu.DRIVER_MEND)
        assert gpu.view_through_torch(torch, [CARD]) == ([CARD], None, problem)
