"""What `nvidia-smi -q -x` tells beyond GPUtil: processes, MIG, ECC, the architecture, and the newest CUDA of the driver."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import PurePath
from xml.etree import ElementTree

# Cards that nobody holds awake take some seconds each to answer; one whose driver hangs never does.
TIME_LIMIT_SECONDS = 20
BYTES_PER_MIB = 2**20


class NoAnswer(Exception):
    """nvidia-smi did not end within its time."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU; None where the driver does not tell."""

    pid: int
    name: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Details:
    """One card: MIG and ECC are "enabled" or "disabled", None on cards that have neither.

    `architecture` is NVIDIA's name ("Turing"), None where the driver (before 495) does not tell.
    """

    processes: list[GpuProcess]
    mig: str | None
    ecc: str | None
    architecture: str | None = None


@dataclass(frozen=True)
class Survey:
    """`newest_cuda` is the newest CUDA that the driver supports ("13.0"); `cards` go by UUID."""

    newest_cuda: str | None = None
    cards: dict[str, Details] = field(default_factory=dict)


def survey() -> Survey:
    """Ask nvidia-smi for everything. Where it cannot be started or prints no XML, that is nothing: GPUtil tells why.

    Raises:
        NoAnswer: it did not end within TIME_LIMIT_SECONDS.
    """
    try:
        process = subprocess.Popen(["nvidia-smi", "-q", "-x"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return Survey()
    try:
        output, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        # It is not waited for: a process that hangs in the driver does not end when it is killed.
        process.kill()
        raise NoAnswer from None
    return parse(output)


def parse(output: bytes) -> Survey:
    # A process names itself, and nvidia-smi passes on what XML does not allow.
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", output.decode(errors="replace"))
    try:
        log = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return Survey()
    cards = {gpu.findtext("uuid", "").strip(): details_of(gpu) for gpu in log.iter("gpu")}
    newest = log.findtext("cuda_version", "").strip()
    return Survey(newest if re.fullmatch(r"\d+\.\d+", newest) else None, cards)


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
