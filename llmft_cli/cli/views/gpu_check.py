"""The findings of gpu-check, as text."""

from __future__ import annotations

from llmft_cli.cli.views.sections import Section, gibibytes, named, share
from llmft_cli.gpu.capabilities import FIRST_WITH, format_version
from llmft_cli.gpu.check import Report
from llmft_cli.gpu.gpus import Gpu, format_process
from llmft_cli.gpu.machine import Cpu, Hub
from llmft_cli.gpu.probes import Probe
from llmft_cli.gpu.problem import Problem
from llmft_cli.settings.compute_types import BF16, FP16, FP32

# Why a device does not compute in bf16.
WHY_NOT_BF16 = {BF16: "", FP16: " (the GPU has no bf16)", FP32: " (the CPU has no bf16 instructions)"}
# Labels of the CUDA versions.
CUDA_VERSIONS = {
    "driver_cuda": "newest CUDA of the driver",
    "cuda": "CUDA of torch",
    "bitsandbytes_cuda": "CUDA of bitsandbytes",
}


def report_sections(report: Report) -> list[Section]:
    sections = [*map(gpu_section, report.gpus), *map(probe_section, report.probes), machine_section(report)]
    sections.append(versions_section(report))
    sections += [problems_section("Problems", report.problems), problems_section("Notes", report.notes)]
    return [section for section in sections if section.rows]


def problems_section(title: str, problems: list[Problem]) -> Section:
    return Section(title, [(problem.what, problem.mend) for problem in problems], ("what", "fix"))


def gpu_section(gpu: Gpu) -> Section:
    free, total = gibibytes(gpu.memory_free_bytes), gibibytes(gpu.memory_total_bytes)
    return named(
        f"GPU {gpu.index}: {gpu.name}",
        {
            "memory": f"{free} free of {total}" if free else total,
            "used by": ", ".join(map(format_process, gpu.processes)) or None,
            "load": share(gpu.load),
            "temperature": None if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f} degrees Celsius",
            "driver": gpu.driver,
            "torch's device": gpu.device,
            "compute capability": gpu.compute_capability,
            "architecture": gpu.architecture,
            "supports": None if gpu.lacks is None else ", ".join(name for name in FIRST_WITH if name not in gpu.lacks) or None,
            "lacks": ", ".join(f"{name} (from {format_version(FIRST_WITH[name])})" for name in gpu.lacks or []) or None,
            "MIG": gpu.mig,
            "ECC": gpu.ecc,
        },
    )


def probe_section(probe: Probe) -> Section:
    nf4, round_trip, int8 = probe.nf4_relative_error, probe.nf4_round_trip_relative_error, probe.int8_relative_error
    bandwidth = probe.bandwidth_bytes_per_second
    return named(
        f"Tested on {probe.device}",
        {
            "result": "ok" if probe.ok else probe.problem,
            "computes in": probe.compute_dtype + WHY_NOT_BF16[probe.compute_dtype],
            "NF4": None if nf4 is None or round_trip is None else f"product error {nf4:.3f}, round-trip error {round_trip:.3f}",
            "int8": None if int8 is None else f"product error {int8:.4f}",
            "products": rates_line(probe),
            "memory": None if bandwidth is None else f"{bandwidth / 1e9:,.0f} GB/s read and written",
        },
    )


def rates_line(probe: Probe) -> str | None:
    """For example: bf16 1.3, fp32 146 GFLOP/s."""
    rates = {BF16: probe.bf16_flops_per_second, FP16: probe.fp16_flops_per_second, FP32: probe.fp32_flops_per_second}
    measured = {name: rate for name, rate in rates.items() if rate is not None}
    if not measured:
        return None
    scale, unit = (1e12, "TFLOP/s") if max(measured.values()) >= 1e12 else (1e9, "GFLOP/s")
    return ", ".join(f"{name} {figure(rate / scale)}" for name, rate in measured.items()) + f" {unit}"


def figure(value: float) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def machine_section(report: Report) -> Section:
    return named(
        "Machine",
        {
            "GPU": None if report.gpus else f"none: {report.gpu_problem}",
            "NF4": None if report.probes else f"not tested: {report.nf4_probe.problem}",
            "CPU": cpu_line(report.cpu),
            "memory": f"{gibibytes(report.memory.available_bytes)} available of {gibibytes(report.memory.total_bytes)}",
            **{f"disk for {disk.purpose}": f"{gibibytes(disk.free_bytes)} free at {disk.path}" for disk in report.disks},
            "Hugging Face Hub": hub_line(report.hub),
            "W&B": report.wandb,
        },
    )


def cpu_line(cpu: Cpu | None) -> str | None:
    """For example: torch uses AVX2 without bf16 instructions, 2 threads."""
    if cpu is None:
        return None
    threads = f"{cpu.threads} thread{'' if cpu.threads == 1 else 's'}"
    return f"torch uses {cpu.instruction_set} {'and' if cpu.bf16 else 'without'} bf16 instructions, {threads}"


def hub_line(hub: Hub) -> str:
    reach = "HF_HUB_OFFLINE is set" if hub.offline else "reachable" if hub.reachable else "not reachable"
    return f"{reach}, {'token stored' if hub.token else 'no token'}"


def versions_section(report: Report) -> Section:
    shown = {}
    for name, version in report.versions.items():
        if name in CUDA_VERSIONS or name == "driver":
            shown[CUDA_VERSIONS.get(name, name)] = version
        else:
            shown[name] = version or "not installed"
    return named(
        "Versions", shown | {"compatible": {True: "yes", False: "no, see Problems", None: None}[report.versions_match]}
    )
