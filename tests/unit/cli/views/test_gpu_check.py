"""What gpu-check's report looks like to a person."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmft_cli.cli.views.gpu_check import report_sections
from llmft_cli.cli.views.sections import Section
from llmft_cli.gpu.check import Nf4Probe, Report
from llmft_cli.gpu.gpus import Gpu
from llmft_cli.gpu.machine import Cpu, Disk, Hub, Memory
from llmft_cli.gpu.nvidia_smi import GpuProcess
from llmft_cli.gpu.probes import Probe
from llmft_cli.gpu.problem import Problem

GIB = 2**30


def rows(section: Section) -> dict[str, str]:
    return {row[0]: row[1] for row in section.rows}


PROBE = Probe("cpu", "bf16", True, True, 0.0934, 0.0921, 0.00752, 4.2e11, None, 1.164e11, 2.85e10, None)


def report(**changes: object) -> Report:
    values = {
        "gpus": [],
        "gpu_problem": "nvidia-smi was not found on the PATH",
        "nf4_probe": Nf4Probe(True, "cpu", 0.0934, 0.0921, None),
        "probes": [PROBE],
        "versions": {"torch": "2.13.0", "triton": None, "driver": None, "driver_cuda": None},
        "versions_match": None,
        "bf16": None,
        "cpu": Cpu("AVX512", bf16=True, threads=1),
        "memory": Memory(8 * GIB, 2 * GIB),
        "disks": [Disk("/runs", "runs", 3 * GIB, 9 * GIB, True)],
        "hub": Hub(token=True, offline=False, reachable=False),
        "wandb": "no account",
        "problems": [],
        "notes": [],
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_without_a_gpu() -> None:
    tried, machine, versions = report_sections(report())
    assert tried.title == "Tested on cpu"
    assert rows(tried) == {
        "result": "ok",
        "computes in": "bf16",
        "NF4": "product error 0.093, round-trip error 0.092",
        "int8": "product error 0.0075",
        "products": "bf16 420, fp32 116 GFLOP/s",
        "memory": "28 GB/s read and written",
    }
    assert machine.title == "Machine"
    assert rows(machine) == {
        "GPU": "none: nvidia-smi was not found on the PATH",
        "CPU": "torch uses AVX512 and bf16 instructions, 1 thread",
        "memory": "2.00 GiB available of 8.00 GiB",
        "disk for runs": "3.00 GiB free at /runs",
        "Hugging Face Hub": "not reachable, token stored",
        "W&B": "no account",
    }
    assert rows(versions) == {"torch": "2.13.0", "triton": "not installed"}


def test_gpus_that_tell_all_or_little() -> None:
    holders = [GpuProcess(4711, "python", 20 * GIB), GpuProcess(5, None, None)]
    told = {
        "device": "cuda:0",
        "compute_capability": "9.0",
        "bf16": True,
        "mig": "disabled",
        "ecc": "enabled",
        "processes": holders,
        "lacks": [],
        "architecture": "Hopper",
    }
    full = Gpu(0, "H100", "u", 80 * GIB, 60 * GIB, 0.25, 41.0, "570", **told)  # type: ignore[arg-type]
    little = Gpu(1, "Old", "v", None, None, None, None, "570")
    slice_of_one = Gpu(2, "A100 MIG 1g.5gb", "w", 5 * GIB, None, None, None, None)
    first, second, third, _, machine, _ = report_sections(report(gpus=[full, little, slice_of_one], gpu_problem=None))
    assert first.title == "GPU 0: H100"
    assert rows(first) == {
        "memory": "60.00 GiB free of 80.00 GiB",
        "used by": "python (pid 4711, 20 GiB), a process (pid 5)",
        "load": "25.0%",
        "temperature": "41 degrees Celsius",
        "driver": "570",
        "torch's device": "cuda:0",
        "compute capability": "9.0",
        "architecture": "Hopper",
        "supports": "NF4, int8, bf16, FlashAttention",
        "MIG": "disabled",
        "ECC": "enabled",
    }
    assert rows(second) == {"driver": "570"}
    assert rows(third) == {"memory": "5.00 GiB"}
    assert "GPU" not in rows(machine)


def test_what_a_gpu_is_too_old_for() -> None:
    turing = Gpu(0, "T4", "u", None, None, None, None, None, lacks=["bf16", "FlashAttention"])
    kepler = Gpu(1, "K80", "v", None, None, None, None, None, lacks=["NF4", "int8", "bf16", "FlashAttention"])
    first, second, *_ = report_sections(report(gpus=[turing, kepler]))
    assert rows(first) == {"supports": "NF4, int8", "lacks": "bf16 (from 8.0), FlashAttention (from 8.0)"}
    assert rows(second) == {"lacks": "NF4 (from 6.0), int8 (from 7.5), bf16 (from 8.0), FlashAttention (from 8.0)"}


def test_what_failed_on_a_device() -> None:
    failed = Probe("cuda:0", "bf16", False, False, None, None, None, None, None, None, None, "NF4 failed")
    broken = replace(failed, bf16_flops_per_second=7.2e14, fp16_flops_per_second=1.2345e15, fp32_flops_per_second=5.12e13)
    tried = report_sections(report(probes=[broken, failed, PROBE]))
    measured = {"products": "bf16 720, fp16 1,234, fp32 51.2 TFLOP/s"}
    assert rows(tried[0]) == {"result": "NF4 failed", "computes in": "bf16"} | measured
    assert rows(tried[1]) == {"result": "NF4 failed", "computes in": "bf16"}
    assert rows(tried[2])["result"] == "ok"


def test_why_a_device_does_not_compute_in_bf16() -> None:
    slow = replace(PROBE, compute_dtype="fp32", bf16_flops_per_second=2.3e8)
    turing = replace(PROBE, device="cuda:0", compute_dtype="fp16", bf16_flops_per_second=None, fp16_flops_per_second=4.2e13)
    on_cpu, on_gpu, machine, _ = report_sections(report(probes=[slow, turing], cpu=Cpu("AVX2", bf16=False, threads=2)))
    assert rows(on_cpu)["computes in"] == "fp32 (the CPU has no bf16 instructions)"
    assert rows(on_cpu)["products"] == "bf16 0.23, fp32 116 GFLOP/s"
    assert rows(on_gpu)["computes in"] == "fp16 (the GPU has no bf16)"
    assert rows(on_gpu)["products"] == "fp16 42.0, fp32 0.12 TFLOP/s"
    assert rows(machine)["CPU"] == "torch uses AVX2 without bf16 instructions, 2 threads"


def test_problems_and_what_could_not_be_tried() -> None:
    untried = Nf4Probe(False, None, None, None, "no torch")
    notes = [Problem("large", "smaller: pip")]
    found = report(nf4_probe=untried, probes=[], cpu=None, problems=[Problem("no disk", "free some")], notes=notes)
    machine, _, problems, noted = report_sections(found)
    assert "CPU" not in rows(machine)
    assert (noted.title, rows(noted)) == ("Notes", {"large": "smaller: pip"})
    assert rows(machine)["NF4"] == "not tested: no torch"
    assert (problems.title, problems.header) == ("Problems", ("what", "fix"))
    assert rows(problems) == {"no disk": "free some"}


def test_whose_cuda_each_version_is() -> None:
    versions = {"driver": "570.86.15", "driver_cuda": "12.8", "cuda": "12.8", "bitsandbytes_cuda": "12.8"}
    assert rows(report_sections(report(versions=versions, versions_match=False))[-1])["compatible"] == "no, see Problems"
    assert rows(report_sections(report(versions=versions, versions_match=True))[-1]) == {
        "driver": "570.86.15",
        "newest CUDA of the driver": "12.8",
        "CUDA of torch": "12.8",
        "CUDA of bitsandbytes": "12.8",
        "compatible": "yes",
    }


@pytest.mark.parametrize(
    ("hub", "line"),
    [
        (Hub(token=False, offline=False, reachable=True), "reachable, no token"),
        (Hub(token=True, offline=True, reachable=False), "HF_HUB_OFFLINE is set, token stored"),
    ],
)
def test_the_hub(hub: Hub, line: str) -> None:
    machine = report_sections(report(hub=hub))[1]
    assert rows(machine)["Hugging Face Hub"] == line
