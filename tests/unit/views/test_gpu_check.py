"""What gpu-check's report looks like to a person."""

from __future__ import annotations

from llmft_cli.gpu.check import Disk, Memory, Report
from llmft_cli.gpu.findings import Problem
from llmft_cli.gpu.gpus import Gpu
from llmft_cli.gpu.probes import Nf4Probe
from llmft_cli.views.gpu_check import report_sections
from llmft_cli.views.sections import Section

GIB = 2**30


def rows(section: Section) -> dict[str, str]:
    return {row[0]: row[1] for row in section.rows}


def report(**changes: object) -> Report:
    values = {
        "gpus": [],
        "gpu_problem": "nvidia-smi was not found on the PATH",
        "nf4_probe": Nf4Probe(True, "cpu", 0.0934, 0.0921, None),
        "versions": {"torch": "2.13.0", "triton": None},
        "bf16": None,
        "memory": Memory(8 * GIB, 2 * GIB),
        "disks": [Disk("/runs", "runs", 3 * GIB, 9 * GIB)],
        "problems": [],
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_gpu_check_without_a_gpu() -> None:
    machine, versions = report_sections(report())
    assert machine.title == "Machine"
    assert rows(machine) == {
        "GPU": "none: nvidia-smi was not found on the PATH",
        "NF4 probe": "ok on cpu (4-bit product 0.093 off fp32, round trip 0.092)",
        "memory": "2.00 GiB available of 8.00 GiB",
        "disk for runs": "3.00 GiB free at /runs",
    }
    assert rows(versions) == {"torch": "2.13.0", "triton": "not installed"}


def test_gpu_check_with_gpus_that_tell_all_or_little() -> None:
    full = Gpu(0, "H100", "u", 80 * GIB, 60 * GIB, 0.25, 41.0, "570", "9.0", True)
    little = Gpu(1, "Old", "v", None, None, None, None, "570")
    first, second, machine, _ = report_sections(report(gpus=[full, little], gpu_problem=None))
    assert first.title == "GPU 0: H100"
    assert rows(first) == {
        "memory": "60.00 GiB free of 80.00 GiB",
        "load": "25.0%",
        "temperature": "41 degrees Celsius",
        "driver": "570",
        "compute capability": "9.0",
        "bf16": "yes",
    }
    assert rows(second) == {"driver": "570"}
    assert "GPU" not in rows(machine)


def test_gpu_check_lists_problems_and_a_failed_probe() -> None:
    found = report(nf4_probe=Nf4Probe(False, None, None, None, "no bitsandbytes"), problems=[Problem("no disk", "free some")])
    machine, _, problems = report_sections(found)
    assert rows(machine)["NF4 probe"] == "no bitsandbytes"
    assert (problems.title, problems.header) == ("Problems", ("what", "mend"))
    assert rows(problems) == {"no disk": "free some"}
