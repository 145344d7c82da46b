"""What gpu-check found, for a person."""

from __future__ import annotations

from llmft_cli.gpu.check import Report
from llmft_cli.gpu.gpus import Gpu, described
from llmft_cli.gpu.machine import Hub
from llmft_cli.gpu.probes import Probe
from llmft_cli.views.sections import Section, gibibytes, named, share

# Whose CUDA each version is.
CUDA_VERSIONS = {
    "driver_cuda": "newest CUDA of the driver",
    "cuda": "CUDA of torch",
    "bitsandbytes_cuda": "CUDA of bitsandbytes",
}


def report_sections(report: Report) -> list[Section]:
    sections = [*map(gpu_section, report.gpus), *map(probe_section, report.probes), machine_section(report)]
    sections.append(versions_section(report))
    if report.problems:
        sections.append(Section("Problems", [(problem.what, problem.mend) for problem in report.problems], ("what", "mend")))
    return sections


def gpu_section(gpu: Gpu) -> Section:
    free, total = gibibytes(gpu.memory_free_bytes), gibibytes(gpu.memory_total_bytes)
    return named(
        f"GPU {gpu.index}: {gpu.name}",
        {
            "memory": f"{free} free of {total}" if free else total,
            "used by": ", ".join(map(described, gpu.processes)) or None,
            "load": share(gpu.load),
            "temperature": None if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f} degrees Celsius",
            "driver": gpu.driver,
            "torch's device": gpu.device,
            "compute capability": gpu.compute_capability,
            "bf16": {True: "yes", False: "no", None: None}[gpu.bf16],
            "MIG": gpu.mig,
            "ECC": gpu.ecc,
        },
    )


def probe_section(probe: Probe) -> Section:
    nf4, round_trip, int8 = probe.nf4_relative_error, probe.nf4_round_trip_relative_error, probe.int8_relative_error
    flops, bandwidth = probe.bf16_flops_per_second, probe.bandwidth_bytes_per_second
    return named(
        f"Tried on {probe.device}",
        {
            "result": "ok" if probe.ok else probe.problem,
            "NF4": None if nf4 is None or round_trip is None else f"product {nf4:.3f} off fp32, round trip {round_trip:.3f}",
            "int8": None if int8 is None else f"product {int8:.4f} off fp32",
            "bf16 products": None if flops is None else f"{flops / 1e12:,.2f} TFLOP/s",
            "memory": None if bandwidth is None else f"{bandwidth / 1e9:,.0f} GB/s read and written",
        },
    )


def machine_section(report: Report) -> Section:
    return named(
        "Machine",
        {
            "GPU": None if report.gpus else f"none: {report.gpu_problem}",
            "NF4": None if report.probes else f"not tried: {report.nf4_probe.problem}",
            "memory": f"{gibibytes(report.memory.available_bytes)} available of {gibibytes(report.memory.total_bytes)}",
            **{f"disk for {disk.purpose}": f"{gibibytes(disk.free_bytes)} free at {disk.path}" for disk in report.disks},
            "Hugging Face Hub": hub_line(report.hub),
            "W&B": report.wandb,
        },
    )


def hub_line(hub: Hub) -> str:
    reach = "HF_HUB_OFFLINE is set" if hub.offline else "answers" if hub.reachable else "does not answer"
    return f"{reach}, {'token stored' if hub.token else 'no token'}"


def versions_section(report: Report) -> Section:
    shown = {}
    for name, version in report.versions.items():
        if name in CUDA_VERSIONS or name == "driver":
            shown[CUDA_VERSIONS.get(name, name)] = version
        else:
            shown[name] = version or "not installed"
    return named(
        "Versions", shown | {"they match": {True: "yes", False: "no, see Problems", None: None}[report.versions_match]}
    )
