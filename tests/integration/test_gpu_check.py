"""gpu-check on machines with other drivers, cards, libraries, networks and disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run

UUID = "GPU-7f0d2c2e-94b2-6f8a-1c39-5be6a1d2f0aa"
CARD = f"0, {UUID}, 97, 81559, {{used}}, {{free}}, 570.86.15, NVIDIA \x1b[31mH100[/red], 1650223, Disabled, Disabled, 61"
FREE, FULL = (CARD.format(used=81559 - free, free=free) for free in (81000, 20))
XML = f"""<?xml version="1.0" ?>
<nvidia_smi_log>
  <driver_version>570.86.15</driver_version>
  <cuda_version>12.8</cuda_version>
  <gpu id="00000000:01:00.0">
    <mig_mode><current_mig>N/A</current_mig></mig_mode>
    <uuid>{UUID}</uuid>
    <ecc_mode><current_ecc>Enabled</current_ecc></ecc_mode>
    <processes><process_info><pid>4711</pid><process_name>/usr/bin/python3 \x1b]0;x\x07</process_name>
      <used_memory>80896 MiB</used_memory></process_info></processes>
  </gpu>
</nvidia_smi_log>"""
HELD = "GPU 0 is fully used by: python3 ?]0;x? (pid 4711, 79 GiB)"
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure it is installed and running."

# What a torch for CUDA 13.0 would say on such a machine, and `main` after it.
PROGRAM = """
import sys, torch, warnings
from types import SimpleNamespace
from torch.torch_version import TorchVersion
torch.version.cuda = "13.0"
{patch}
from llmft_cli.cli.app import main
main()
"""
TOO_OLD = """
def too_old():
    warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found version 12080).")
    return False
torch.cuda.is_available = too_old
"""
SEEN = f"""
card = SimpleNamespace(uuid="{UUID.removeprefix("GPU-")}", major=9, minor=0, name="H100", total_memory=2**36)
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda.get_device_properties = lambda index: card
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.get_arch_list = lambda: ["sm_75", "sm_80", "sm_90"]
torch._C._cuda_getCurrentRawStream = None
"""
# A torch for CUDA brings CUDA's libraries along, one for the CPU does not.
NO_CUDA_LIBRARIES = """
import ctypes
load = ctypes.cdll.LoadLibrary
def load_without_cuda(name):
    if "_cuda" in name:
        raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")
    return load(name)
ctypes.cdll.LoadLibrary = load_without_cuda
torch.version.cuda = "13.0"
"""
# What a card without free memory says to the first that wants some.
NO_ROOM = f"""{SEEN}
# bitsandbytes, which asks with another type, then takes its library for the CPU.
torch.cuda.get_device_capability = lambda device: {{torch.device: (9, 0)}}[type(device)]
from llmft_cli.gpu import probes, rates
def refuse(*arguments, **more): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
probes.mismatch = lambda torch, bitsandbytes: None
probes.nf4_errors = probes.int8_error = probes.flops_per_second = probes.bandwidth_bytes_per_second = refuse
"""


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Make a folder with an `nvidia-smi` that prints this, or without any; returns the PATH that has nothing else."""

    def make(output: str | None = None, xml: str = XML, code: int = 0, before: str = "") -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        if output is not None:
            (folder / "output").write_text(f"{output}\n")
            (folder / "xml").write_text(f"{xml}\n")
            choice = f'case "$*" in "-q -x") /bin/cat {folder}/xml;; *) /bin/cat {folder}/output;; esac'
            (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{before}\n{choice}\nexit {code}\n")
            (folder / "nvidia-smi").chmod(0o755)
        return {"PATH": str(folder)}

    return make


@pytest.fixture
def with_torch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run gpu-check in a process whose torch was patched before."""

    def start(patch: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM.format(patch=patch), "gpu-check", *flags]
        variables = {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"} | environment
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600)

    return start


def found(done: subprocess.CompletedProcess[str]) -> dict:
    """The JSON of a gpu-check --json that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The error and the hint of a --require-gpu that failed."""
    assert (done.returncode, done.stdout) == (3, "")
    return done.stderr.splitlines()[-2:]


class TestDriver:
    def test_none(self, run: Run, machine: Callable[..., dict[str, str]], tmp_path: Path) -> None:
        environment = machine()
        report = found(run("gpu-check", "--json", folder=tmp_path, **environment))
        assert (report["gpus"], report["gpu_problem"]) == ([], "nvidia-smi was not found on the PATH")
        assert (report["nf4_probe"]["ok"], report["nf4_probe"]["device"], report["problems"]) == (True, "cpu", [])
        probe = report["probes"][0]
        assert probe["compute_dtype"] == ("bf16" if report["cpu"]["bf16"] else "fp32")
        assert min(probe["bf16_flops_per_second"], probe["fp32_flops_per_second"], probe["bandwidth_bytes_per_second"]) > 0
        assert probe["fp16_flops_per_second"] is None
        assert 0.005 < report["probes"][0]["int8_relative_error"] < 0.015
        error, hint = refused(run("gpu-check", "--require-gpu", folder=tmp_path, **environment))
        assert error == "error: no usable GPU: nvidia-smi was not found on the PATH"
        assert hint.startswith("hint: use a machine with an NVIDIA GPU and its driver")

    @pytest.mark.parametrize(("said", "code", "mended"), [(FAILED, 9, True), ("No devices were found", 6, False)])
    def test_without_a_card(
        self, run: Run, machine: Callable[..., dict[str, str]], tmp_path: Path, said: str, code: int, mended: bool
    ) -> None:
        report = found(run("gpu-check", "--json", folder=tmp_path, **machine(said, said, code)))
        assert (report["gpus"], report["gpu_problem"]) == ([], f"nvidia-smi: {said}")
        assert [problem["what"] for problem in report["problems"]] == [f"nvidia-smi: {said}"] * mended
        assert all(problem["mend"] for problem in report["problems"])

    @pytest.mark.parametrize("said", ["garbage", "", "0, GPU-1", "<html>"])
    def test_that_says_nonsense(self, run: Run, machine: Callable[..., dict[str, str]], tmp_path: Path, said: str) -> None:
        report = found(run("gpu-check", "--json", folder=tmp_path, **machine(said, said)))
        assert report["gpus"] == []
        assert report["problems"][0]["what"].startswith("nvidia-smi")
        assert "nvidia-smi" in report["problems"][0]["mend"]

    def test_that_hangs(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        """CUDA would hang as well, and could not be interrupted by Ctrl-C."""
        patch = """
import llmft_cli.gpu.nvidia_smi
llmft_cli.gpu.nvidia_smi.TIME_LIMIT_SECONDS = 1
def hang(*arguments): raise AssertionError("hung")
torch.cuda.is_available = torch.cuda.device_count = torch._C._cuda_init = hang
"""
        started = time.monotonic()
        done = with_torch(patch, "--json", **machine(FREE, before="exec /bin/sleep 600"))
        assert time.monotonic() - started < 300
        report = found(done)
        assert (report["gpus"], report["probes"], report["nf4_probe"]["ok"]) == ([], [], False)
        assert [problem["what"] for problem in report["problems"]] == [
            "nvidia-smi did not answer within 1 s (the driver is not responding)"
        ]

    def test_too_old(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        error, hint = refused(
            with_torch(f'{TOO_OLD}torch.__version__ = TorchVersion("2.11.0+cu130")', "--require-gpu", **machine(FREE))
        )
        assert "nvidia-smi shows 1 GPU(s), torch sees none: driver 570.86.15 supports CUDA 12.8 at most, torch " in error
        line = "pip install torch==2.11.0+cu128 --index-url https://download.pytorch.org/whl/cu128"
        assert hint.startswith("hint: update the NVIDIA driver")
        assert hint.endswith(line)

    def test_a_torch_without_cuda(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        patch = 'torch.version.cuda, torch.__version__ = None, TorchVersion("2.13.0+cpu")'
        error, hint = refused(with_torch(patch, "--require-gpu", **machine(FREE)))
        assert error.endswith("nvidia-smi shows 1 GPU(s), torch sees none: torch 2.13.0+cpu is a build without CUDA")
        assert hint == "hint: pip install torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126"

    def test_a_torch_with_cuda_where_there_is_no_gpu(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        report = found(with_torch('torch.__version__ = TorchVersion("2.13.0+cu130")', "--json", **machine()))
        assert (report["problems"], report["nf4_probe"]["ok"]) == ([], True)
        (note,) = report["notes"]
        assert note["what"].startswith("torch 2.13.0+cu130 ")
        assert note["mend"].endswith("pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu")

    @pytest.mark.parametrize("visible", ["", "7"])
    def test_cards_that_are_hidden(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]], visible: str
    ) -> None:
        report = found(with_torch("", "--json", CUDA_VISIBLE_DEVICES=visible, **machine(FREE)))
        what = f"nvidia-smi shows 1 GPU(s), torch sees none: CUDA_VISIBLE_DEVICES is '{visible}'"
        assert report["problems"] == [{"what": what, "mend": "unset CUDA_VISIBLE_DEVICES"}]
        assert report["nf4_probe"]["device"] == "cpu"


class TestOldCard:
    """A V100, for which torch's CUDA 13.0 build has no kernels."""

    SEEN = f"""{SEEN}
card.major, card.minor = 7, 0
torch.cuda.get_device_capability = lambda device=None: (7, 0)
torch.__version__ = TorchVersion("2.13.0+cu130")
"""

    def test_without_kernels(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        error, hint = refused(with_torch(self.SEEN, "--require-gpu", **machine(FREE)))
        assert "torch 2.13.0+cu130 has no kernels for GPU 0 (NVIDIA " in error
        assert error.endswith("compute capability 7.0), only for sm_75, sm_80, sm_90")
        assert hint == "hint: pip install torch==2.13.0+cu126 --index-url https://download.pytorch.org/whl/cu126"

    def test_what_it_lacks(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        report = found(with_torch(self.SEEN, "--json", **machine(FREE)))
        assert report["gpus"][0]["lacks"] == ["int8", "bf16", "FlashAttention"]
        assert (report["gpus"][0]["bf16"], report["probes"][0]["compute_dtype"]) == (False, "fp16")
        lines = with_torch(self.SEEN, **machine(FREE)).stdout.splitlines()
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith(("supports", "lacks"))] == [
            "NF4",
            "int8 (from 7.5), bf16 (from 8.0), FlashAttention (from 8.0)",
        ]


class TestFullCard:
    def test_is_shown_with_who_uses_it(self, run: Run, machine: Callable[..., dict[str, str]], tmp_path: Path) -> None:
        done = run("gpu-check", folder=tmp_path, **machine(FULL))
        assert done.returncode == 0
        assert "\x1b" not in done.stdout
        assert "GPU 0: NVIDIA \\x1b[31mH100[/red]\n" in done.stdout
        lines = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in done.stdout.splitlines()}
        assert lines["memory"]
        assert lines["used by"] == "python3 ?]0;x? (pid 4711, 79 GiB)"
        assert (lines["load"], lines["temperature"], lines["ECC"]) == ("97.0%", "61 degrees Celsius", "enabled")
        assert "MIG" not in lines
        assert "CUDA_VISIBLE_DEVICES" in lines[HELD]

    def test_refuses_the_probe(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        report = found(with_torch(NO_ROOM, "--json", **machine(FULL)))
        assert [problem["what"] for problem in report["problems"]] == [HELD]
        assert (report["probes"][0]["ok"], report["probes"][0]["problem"]) == (False, HELD)
        assert report["gpus"][0]["processes"] == [{"pid": 4711, "name": "python3 ?]0;x?", "memory_bytes": 79 * 2**30}]
        assert (report["gpus"][0]["mig"], report["gpus"][0]["ecc"], report["gpus"][0]["device"]) == (None, "enabled", "cuda:0")


class TestBitsandbytes:
    """Its own libraries come with the package; CUDA's may be missing."""

    def test_without_the_libraries_of_cuda(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        error, hint = refused(with_torch(SEEN + NO_CUDA_LIBRARIES, "--require-gpu", **machine(FREE)))
        assert "cannot load a library for CUDA 13.0: libcu" in error
        assert "cannot open shared object file" in error
        assert hint.startswith("hint: pip install --force-reinstall torch==")

    def test_without_its_own_library(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        done = with_torch(f'{SEEN}\ntorch.version.cuda = "19.0"', "--json", **machine(FREE))
        report = found(done)
        problem = report["problems"][0]
        assert "cannot load a library for CUDA 19.0: No compatible CUDA binary found at " in problem["what"]
        assert problem["mend"] == "pip install --upgrade --force-reinstall --no-deps bitsandbytes"
        assert (report["nf4_probe"]["ok"], report["nf4_probe"]["problem"]) == (False, problem["what"])
        assert report["versions"]["bitsandbytes_cuda"] is None
        assert report["versions_match"] is False
        assert "Traceback" not in done.stderr

    def test_told_to_take_another(
        self, with_torch: Callable[..., subprocess.CompletedProcess[str]], machine: Callable[..., dict[str, str]]
    ) -> None:
        report = found(with_torch(SEEN, "--json", BNB_CUDA_VERSION="999", **machine(FREE)))
        assert report["problems"][0]["what"].endswith("(BNB_CUDA_VERSION is '999')")
        assert report["problems"][0]["mend"] == "unset BNB_CUDA_VERSION"


def test_no_network_and_secrets_that_stay_secret(llmft: Run, tmp_path: Path) -> None:
    secrets = {"HF_TOKEN": "hf_ThisIsNoRealTokenButLooksLikeOne", "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567"}
    done = llmft("gpu-check", "--json", "--debug", folder=tmp_path, HF_ENDPOINT="http://127.0.0.1:9", **secrets)
    report = found(done)
    assert (report["hub"], report["wandb"]) == ({"token": True, "offline": False, "reachable": False}, "logged in")
    assert report["problems"] == []
    assert not [secret for secret in secrets.values() if secret in done.stdout + done.stderr]


def test_no_disk(run: Run, machine: Callable[..., dict[str, str]], mounted: Callable[[str], Path]) -> None:
    disk = mounted("64k")
    facts = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * (facts.f_bavail * facts.f_bsize))
    report = found(run("gpu-check", "--json", folder=disk, HOME=str(disk), TMPDIR=str(disk), **machine()))
    assert report["nf4_probe"]["ok"]
    for folder, mend in ((".cache/llmft", "LLMFT_CACHE"), ("runs", "--run")):
        (problem,) = (problem for problem in report["problems"] if f"({disk}/{folder})" in problem["what"])
        assert "0 B" in problem["what"]
        assert mend in problem["mend"]


def test_a_disk_that_may_only_be_read(run: Run, machine: Callable[..., dict[str, str]], mounted: Callable[[str], Path]) -> None:
    disk = mounted("64k")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    report = found(run("gpu-check", "--json", folder=disk, **machine()))
    (problem,) = (problem for problem in report["problems"] if f"({disk}/runs)" in problem["what"])
    assert "not writable" in problem["what"]


def test_only_what_is_needed_is_imported(with_torch: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """gpu-check takes little longer than importing torch and bitsandbytes; any other library would show."""
    patch = """
import atexit
others = {"transformers", "datasets", "peft", "wandb", "accelerate", "pyarrow"}
atexit.register(lambda: print(sorted(others & set(sys.modules))))
"""
    assert with_torch(patch, "--quiet").stdout.splitlines()[-1] == "[]"
