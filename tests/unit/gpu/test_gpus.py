"""What nvidia-smi says of the GPUs, and what it says when it is broken."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from machines import CARD, LINE, UUID, WHOLE, XML, entry

from llmft_cli.gpu import gpus as gpu
from llmft_cli.gpu.gpus import Gpu, Listing
from llmft_cli.gpu.nvidia_smi import GpuProcess
from llmft_cli.gpu.problem import Problem


class TestGputil:
    def test_fields(self, fake_gputil: Any) -> None:
        fake_gputil(entry())
        assert gpu.gputil_gpus() == ([CARD], None)

    def test_what_a_card_does_not_tell_is_none(self, fake_gputil: Any) -> None:
        nan = float("nan")
        fake_gputil(entry(load=nan, temperature=nan, memoryTotal=nan, memoryFree=nan))
        mute = replace(CARD, load=None, temperature_celsius=None, memory_total_bytes=None, memory_free_bytes=None)
        assert gpu.gputil_gpus() == ([mute], None)

    @pytest.mark.parametrize("error", [ValueError("odd"), IndexError("odd"), ZeroDivisionError("odd")])
    def test_gputil_raises(self, fake_gputil: Any, error: Exception) -> None:
        fake_gputil(error=error)
        assert gpu.gputil_gpus() == ([], Problem("nvidia-smi: odd", gpu.DRIVER_MEND))

    def test_empty(self, fake_gputil: Any) -> None:
        fake_gputil()
        assert gpu.gputil_gpus() == ([], Problem("nvidia-smi lists no GPU", ""))

    @pytest.mark.parametrize(("missing", "package"), [("distutils", "setuptools"), ("GPUtil", "GPUtil")])
    def test_not_importable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str, package: str) -> None:
        (tmp_path / "GPUtil.py").write_text(f"raise ModuleNotFoundError(\"No module named '{missing}'\", name='{missing}')")
        monkeypatch.delitem(sys.modules, "GPUtil", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        gpus, problem = gpu.gputil_gpus()
        assert gpus == []
        assert problem is not None
        assert problem.what.endswith(f"No module named '{missing}'")
        assert problem.mend == f"pip install {package}"


class TestThroughNvidiaSmi:
    def test_two_cards(self, nvidia_smi: Any) -> None:
        other = "1, GPU-2, [N/A], [N/A], [N/A], [N/A], 570.86.15, NVIDIA GB10, [N/A], Disabled, Disabled, [N/A]"
        nvidia_smi(f"{LINE}\n{other}")
        assert gpu.gputil_gpus() == ([CARD, Gpu(1, "NVIDIA GB10", "GPU-2", None, None, None, None, "570.86.15")], None)

    def test_no_devices(self, nvidia_smi: Any) -> None:
        nvidia_smi("No devices were found", code=6)
        assert gpu.gputil_gpus() == ([], Problem("nvidia-smi: No devices were found", ""))

    def test_driver_does_not_answer(self, nvidia_smi: Any) -> None:
        said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
        nvidia_smi(said, code=9)
        assert gpu.gputil_gpus() == ([], Problem(f"nvidia-smi: {said}", gpu.DRIVER_MEND))

    @pytest.mark.parametrize("output", ["0, GPU-1", LINE.replace("81559", "0"), "garbage"])
    def test_odd_output(self, nvidia_smi: Any, output: str) -> None:
        nvidia_smi(output)
        gpus, problem = gpu.gputil_gpus()
        assert gpus == []
        assert problem is not None
        assert problem.mend == gpu.DRIVER_MEND

    def test_no_nvidia_smi(self, nvidia_smi: Any) -> None:
        assert gpu.gputil_gpus() == ([], Problem("nvidia-smi was not found on the PATH", ""))


class TestListing:
    def test_nvidia_smi_adds_to_gputils_list(self, nvidia_smi: Any) -> None:
        nvidia_smi(LINE, xml=XML)
        assert gpu.list_gpus() == Listing([WHOLE], None, "12.8")

    def test_a_card_that_the_xml_does_not_have(self, nvidia_smi: Any) -> None:
        nvidia_smi(LINE.replace(UUID, "GPU-other"), xml=XML)
        assert gpu.list_gpus() == Listing([replace(CARD, uuid="GPU-other")], None, "12.8")

    def test_gputils_list_is_enough(self, nvidia_smi: Any) -> None:
        nvidia_smi(LINE, xml="unknown option -x")
        assert gpu.list_gpus() == Listing([CARD])

    def test_a_driver_that_hangs_is_reported_in_time(self, nvidia_smi: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """GPUtil itself waits for nvidia-smi forever."""
        monkeypatch.setattr(gpu, "TIME_LIMIT_SECONDS", 0.2)
        monkeypatch.setattr("llmft_cli.gpu.nvidia_smi.TIME_LIMIT_SECONDS", 0.2)
        nvidia_smi(LINE, xml=XML, before="exec /bin/sleep 60")
        started = time.monotonic()
        assert gpu.list_gpus() == Listing([], gpu.DRIVER_HANGS)
        assert gpu.gputil_gpus() == ([], gpu.DRIVER_HANGS)
        assert time.monotonic() - started < 30


class TestFullness:
    def test_a_card_with_less_than_what_a_context_needs_is_full(self) -> None:
        assert not gpu.is_full(replace(CARD, memory_free_bytes=2**30))
        assert gpu.is_full(replace(CARD, memory_free_bytes=2**30 - 1))
        assert not gpu.is_full(replace(CARD, memory_free_bytes=None))

    def test_a_card_without_room_for_a_context_is_not_to_be_opened(self) -> None:
        assert gpu.can_be_opened(replace(CARD, memory_free_bytes=int(0.6 * 2**30)))
        assert not gpu.can_be_opened(replace(CARD, memory_free_bytes=int(0.6 * 2**30) - 1))
        assert gpu.can_be_opened(replace(CARD, memory_free_bytes=None))

    def test_the_largest_processes_are_named(self) -> None:
        holders = [GpuProcess(pid, name, size and size * 2**30) for pid, name, size in HOLDERS]
        assert gpu.full_gpu_problem(replace(CARD, processes=holders)).what == (
            "GPU 0 is fully used by: trainer (pid 3, 40 GiB), python (pid 1, 20 GiB), a process (pid 4, 10 GiB) and 2 more"
        )
        for processes, shown in ((holders[:1], "python (pid 1, 20 GiB)"), (holders[4:], "Xorg (pid 5)")):
            assert gpu.full_gpu_problem(replace(CARD, processes=processes)).what == f"GPU 0 is fully used by: {shown}"

    def test_processes_of_other_containers_are_not_shown(self) -> None:
        problem = gpu.full_gpu_problem(replace(CARD, memory_free_bytes=300 * 2**20))
        assert problem.what.startswith("GPU 0 has only 300 MiB of 79.6 GiB free")
        assert "CUDA_VISIBLE_DEVICES" in problem.mend


HOLDERS = [(1, "python", 20), (2, "jupyter", 5), (3, "trainer", 40), (4, None, 10), (5, "Xorg", None)]
