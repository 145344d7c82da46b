"""What gpu-check found, for a person."""

from __future__ import annotations

from llmft_cli.gpu.check import Report
from llmft_cli.views.sections import Section, gibibytes, named, share


def report_sections(report: Report) -> list[Section]:
    gpus = [
        named(
            f"GPU {gpu.index}: {gpu.name}",
            {
                "memory": None
                if gpu.memory_free_bytes is None
                else f"{gibibytes(gpu.memory_free_bytes)} free of {gibibytes(gpu.memory_total_bytes)}",
                "load": share(gpu.load),
                "temperature": None if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f} degrees Celsius",
                "driver": gpu.driver,
                "compute capability": gpu.compute_capability,
                "bf16": {True: "yes", False: "no", None: None}[gpu.bf16],
            },
        )
        for gpu in report.gpus
    ]
    probe = report.nf4_probe
    found = f"ok on {probe.device}" if probe.ok else probe.problem
    if probe.max_relative_error is not None:
        found = (
            f"{found} (4-bit product {probe.max_relative_error:.3f} off fp32, round trip {probe.round_trip_relative_error:.3f})"
        )
    machine = named(
        "Machine",
        {
            "GPU": None if report.gpus else f"none: {report.gpu_problem}",
            "NF4 probe": found,
            "memory": f"{gibibytes(report.memory.available_bytes)} available of {gibibytes(report.memory.total_bytes)}",
            **{f"disk for {disk.purpose}": f"{gibibytes(disk.free_bytes)} free at {disk.path}" for disk in report.disks},
        },
    )
    sections = [
        *gpus,
        machine,
        named("Versions", {name: version or "not installed" for name, version in report.versions.items()}),
    ]
    if report.problems:
        sections.append(Section("Problems", [(problem.what, problem.mend) for problem in report.problems], ("what", "mend")))
    return sections
