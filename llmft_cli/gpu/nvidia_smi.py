"""What `nvidia-smi -q -x` reports and GPUtil does not: processes, MIG, ECC, architecture, the driver's newest CUDA."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import PurePath
from xml.etree import ElementTree

# GPUs without persistence mode take a few seconds each to answer; a driver that hangs never answers.
TIME_LIMIT_SECONDS = 20
BYTES_PER_MIB = 2**20


class NoAnswer(Exception):
    """nvidia-smi did not finish in time."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses GPU memory; None for what the driver does not report."""

    pid: int
    name: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Details:
    """Details of one GPU: MIG and ECC are "enabled" or "disabled", None if not supported.

    `architecture` is NVIDIA's name ("Turing"), None with drivers before 495.
    """

    processes: list[GpuProcess]
    mig: str | None
    ecc: str | None
    architecture: str | None = None


@dataclass(frozen=True)
class SmiReport:
    """`newest_cuda` is the newest CUDA version that the driver supports ("13.0"); `details` is by UUID."""

    newest_cuda: str | None = None
    details: dict[str, Details] = field(default_factory=dict)


def query_nvidia_smi() -> SmiReport:
    """Query everything. An empty report if nvidia-smi cannot be started or prints no XML: GPUtil reports the reason.

    Raises:
        NoAnswer: it did not finish within TIME_LIMIT_SECONDS.
    """
    try:
        process = subprocess.Popen(["nvidia-smi", "-q", "-x"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return SmiReport()
    try:
        output, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        # Do not wait for it: a process that hangs in the driver survives SIGKILL.
        process.kill()
        raise NoAnswer from None
    return parse(output)


def parse(output: bytes) -> SmiReport:
    # Process names may contain characters that XML forbids, and nvidia-smi does not escape them.
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", output.decode(errors="replace"))
    try:
        log = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return SmiReport()
    details = {gpu.findtext("uuid", "").strip(): details_of(gpu) for gpu in log.iter("gpu")}
    newest = log.findtext("cuda_version", "").strip()
    return SmiReport(newest if re.fullmatch(r"\d+\.\d+", newest) else None, details)


def details_of(gpu: ElementTree.Element) -> Details:
    processes = [process_of(entry) for entry in gpu.iter("process_info") if entry.findtext("pid", "").strip().isdigit()]
    return Details(
        processes=processes,
        mig=state(gpu.findtext("mig_mode/current_mig")),
        ecc=state(gpu.findtext("ecc_mode/current_ecc")),
        architecture=gpu.findtext("product_architecture", "").strip() or None,
    )


def process_of(entry: ElementTree.Element) -> GpuProcess:
    name = " ".join(entry.findtext("process_name", "").split())
    memory = re.fullmatch(r"(\d+) MiB", entry.findtext("used_memory", "").strip())
    known = name and not name.startswith("[") and name not in ("N/A", "Insufficient Permissions")
    return GpuProcess(
        pid=int(entry.findtext("pid", "")),
        name=PurePath(name).name if known else None,
        memory_bytes=int(memory[1]) * BYTES_PER_MIB if memory else None,
    )


def state(shown: str | None) -> str | None:
    return {"Enabled": "enabled", "Disabled": "disabled"}.get((shown or "").strip())
