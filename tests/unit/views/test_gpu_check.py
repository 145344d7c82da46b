"""What gpu-check's report looks like to a person."""

from __future__ import annotations

import pytest

from llmft_cli.gpu.check import Nf4Probe, Report
from llmft_cli.gpu.findings import Problem
from llmft_cli.gpu.gpus import Gpu
from llmft_cli.gpu.machine import Disk, Hub, Memory
from llmft_cli.gpu.nvidia_smi import GpuProcess
from llmft_cli.gpu.probes import Probe
from llmft_cli.views.gpu_check import report_sections
from llmft_cli.views.sections import Section

GIB = 2**30


def rows(section: Section) -> dict[str, str]:
    return {row[0]: row[1] for row in section.rows}


PROBE = Probe("cpu", True, True, 0.0934, 0.0921, 0.00752, 4.2e11, 2.85e10, None)


def report(**changes: object) -> Report:
    values = {
        "gpus": [],
        "gpu_problem": "nvidia-smi was not found on the PATH",
        "nf4_probe": Nf4Probe(True, "cpu", 0.0934, 0.0921, None),
        "probes": [PROBE],
        "versions": {"torch": "2.13.0", "triton": None, "driver": None, "driver_cuda": None},
        "versions_match": None,
        "bf16": None,
        "memory": Memory(8 * GIB, 2 * GIB),
        "disks": [Disk("/runs", "runs", 3 * GIB, 9 * GIB, True)],
        "hub": Hub(token=True, offline=False, reachable=False),
        "wandb": "no account",
        "problems": [],
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_without_a_gpu() -> None:
    tried, machine, versions = report_sections(report())
    assert tried.title == "Tried on cpu"
    assert rows(tried) == {
        "result": "ok",
        "NF4": "product 0.093 off fp32, round trip 0.092",
        "int8": "product 0.0075 off fp32",
        "bf16 products": "0.42 TFLOP/s",
        "memory": "28 GB/s read and written",
    }
    assert machine.title == "Machine"
    assert rows(machine) == {
        "GPU": "none: nvidia-smi was not found on the PATH",
        "memory": "2.00 GiB available of 8.00 GiB",
        "disk for runs": "3.00 GiB free at /runs",
        "Hugging Face Hub": "does not answer, token stored",
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
        "bf16": "yes",
        "MIG": "disabled",
        "ECC": "enabled",
    }
    assert rows(second) == {"driver": "570"}
    assert rows(third) == {"memory": "5.00 GiB"}
    assert "GPU" not in rows(machine)


def test_what_failed_on_a_device() -> None:
    broken = Probe("cuda:0", False, False, None, None, None, 7.2e14, None, "NF4 failed")
    tried = report_sections(report(probes=[broken, PROBE]))
    assert rows(tried[0]) == {"result": "NF4 failed", "bf16 products": "720.00 TFLOP/s"}
    assert rows(tried[1])["result"] == "ok"


def test_problems_and_what_could_not_be_tried() -> None:
    untried = Nf4Probe(False, None, None, None, "no torch")
    found = report(nf4_probe=untried, probes=[], problems=[Problem("no disk", "free some")])
    machine, _, problems = report_sections(found)
    assert rows(machine)["NF4"] == "not tried: no torch"
    assert (problems.title, problems.header) == ("Problems", ("what", "mend"))
    assert rows(problems) == {"no disk": "free some"}


def test_whose_cuda_each_version_is() -> None:
    versions = {"driver": "570.86.15", "driver_cuda": "12.8", "cuda": "12.8", "bitsandbytes_cuda": "12.8"}
    assert rows(report_sections(report(versions=versions, versions_match=False))[-1])["they match"] == "no, see Problems"
    assert rows(report_sections(report(versions=versions, versions_match=True))[-1]) == {
        "driver": "570.86.15",
        "newest CUDA of the driver": "12.8",
        "CUDA of torch": "12.8",
        "CUDA of bitsandbytes": "12.8",
        "they match": "yes",
    }


@pytest.mark.parametrize(
    ("hub", "line"),
    [
        (Hub(token=False, offline=False, reachable=True), "answers, no token"),
        (Hub(token=True, offline=True, reachable=False), "HF_HUB_OFFLINE is set, token stored"),
    ],
)
def test_the_hub(hub: Hub, line: str) -> None:
    machine = report_sections(report(hub=hub))[1]
    assert rows(machine)["Hugging Face Hub"] == line
