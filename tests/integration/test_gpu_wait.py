"""`llmft gpu-check --wait` as job scripts run it, with a fake nvidia-smi whose output changes while it waits."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import LLMFT

ROW = "{index}, GPU-{index}aaa, {load}, {total}, {used}, {free}, 570.86.15, NVIDIA H100, 1650223, Disabled, Disabled, 41"
# Prints nothing for -q -x, which is not needed here; the list of GPUs comes from a script beside the program.
NVIDIA_SMI = """#!/bin/sh
case "$*" in *--query-gpu*) . {figures} ;; esac
"""
INTERRUPTED = ["error: interrupted", "hint: finished work is saved"]
# Allocates and touches that many MiB, frees them after a line of input, and exits after another.
HOLDER = """
import mmap, sys
size = int(sys.argv[1]) * 2**20
held = mmap.mmap(-1, size)
for offset in range(0, size, mmap.PAGESIZE):
    held[offset] = 1
print("holds", flush=True)
sys.stdin.readline()
held.close()
print("freed", flush=True)
sys.stdin.readline()
"""


def row(index: int, free: int, load: int | str = 0, total: int = 81559) -> str:
    """A line of nvidia-smi; sizes in MiB, load in percent."""
    return ROW.format(index=index, load=load, total=total, used=total - free, free=free)


BUSY = row(0, 3215, 97)


class Machine:
    """A folder with a fake nvidia-smi, in which the installed `llmft` runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._figures = folder / "figures.sh"
        program = folder / "bin" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text(NVIDIA_SMI.format(figures=shlex.quote(str(self._figures))))
        program.chmod(0o755)
        path = f"{program.parent}:{LLMFT.parent}:{os.environ['PATH']}"
        self.environment = {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8", "COLUMNS": "80"}

    def shows(self, *rows: str) -> None:
        self.does("printf '%s\\n' " + " ".join(map(shlex.quote, rows)))

    def does(self, script: str) -> None:
        """Make nvidia-smi print the output of a shell script."""
        new = self._figures.with_suffix(".new")
        new.write_text(f"{script}\n")
        new.replace(self._figures)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def check(self, *flags: str, **environment: str) -> subprocess.Popen[str]:
        return self.start(str(LLMFT), "gpu-check", *flags, **environment)

    def said(self, *flags: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a check run to its end."""
        return ended(self.check(*flags, **environment))


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_free_card_is_reported_immediately_and_without_torch(machine: Machine) -> None:
    machine.shows(row(0, 81000))
    assert machine.said("--wait", "2h", "--min-free", "20GiB") == (0, "0\n", "")
    code, out, imports = machine.said("--wait", "2h", PYTHONPROFILEIMPORTTIME="1")
    modules = {line.rpartition("|")[2].strip() for line in imports.splitlines()}
    assert (code, out) == (0, "0\n")
    assert "GPUtil" in modules
    assert not modules & {"torch", "transformers", "bitsandbytes", "llmft_cli.gpu.probes"}


def test_a_card_comes_free(machine: Machine) -> None:
    machine.shows(BUSY)
    waiting = machine.check("--wait", "10m", "--min-free", "20GiB")
    wanted = "waiting for 1 GPU with 20 GiB free and a load of at most 10%: "
    assert read_line(waiting) == f"{wanted}GPU 0 has 3.1 GiB free, load 97%\n"
    machine.shows(row(0, 81000, 50))
    assert read_line(waiting) == f"{wanted}GPU 0 has 79.1 GiB free, load 50%\n"
    machine.shows(row(0, 81000))
    assert ended(waiting) == (0, "0\n", "")


def test_json(machine: Machine) -> None:
    machine.shows(BUSY, row(1, 81000), row(2, 81000))
    waiting = machine.check("--wait", "10m", "--gpus", "3", "--json")
    time.sleep(1.5)
    machine.shows(row(0, 81000), row(1, 81000), row(2, 81000))
    code, out, err = ended(waiting)
    result = json.loads(out)
    waited = result.pop("waited_seconds")
    assert (code, err) == (0, "")
    assert result == {
        "ok": True,
        "command": "gpu-check",
        "run": None,
        "gpu_indices": [0, 1, 2],
        "gpu_uuids": ["GPU-0aaa", "GPU-1aaa", "GPU-2aaa"],
    }
    assert 0.5 < waited < 60


def test_several_cards_among_those_that_the_job_may_see(machine: Machine) -> None:
    machine.shows(row(0, 81000), BUSY.replace("0, GPU-0", "1, GPU-1", 1), row(2, 81000), row(3, 81559))
    assert machine.said("--gpus", "2") == (0, "0,3\n", "")
    assert machine.said("--gpus", "2", CUDA_VISIBLE_DEVICES="0,1,2") == (0, "0,2\n", "")
    assert machine.said("--wait", "0", CUDA_VISIBLE_DEVICES="GPU-2aaa") == (0, "2\n", "")
    code, out, err = machine.said("--gpus", "2", CUDA_VISIBLE_DEVICES="0")
    assert (code, out) == (3, "")
    error, hint = err.splitlines()
    assert error.startswith("error: 2 GPUs requested, but CUDA_VISIBLE_DEVICES=0 ")
    assert "1 of 4" in error
    assert hint.endswith("unset CUDA_VISIBLE_DEVICES")


def test_time_is_up(machine: Machine) -> None:
    machine.shows(BUSY)
    state = "1 GPU with 20 GiB free and a load of at most 10%: GPU 0 has 3.1 GiB free, load 97%"
    code, out, err = machine.said("--wait", "2s", "--min-free", "20GiB")
    assert (code, out, err.splitlines()[:2]) == (5, "", [f"waiting for {state}", f"error: not free within 2s: {state}"])
    assert len(err.splitlines()) == 3
    quiet = machine.said("--wait", "2s", "--min-free", "20GiB", "--quiet")
    assert quiet == (5, "", "".join(f"{line}\n" for line in err.splitlines()[1:]))
    code, out, err = machine.said("--min-free", "20GiB", "--json")
    result = json.loads(out)
    assert "--wait 2h" in result["error"].pop("hint")
    error = {"kind": "memory", "message": f"not free now: {state}"}
    assert (code, result, err) == (5, {"ok": False, "error": error}, "")


def test_nobody_waits_for_the_impossible(machine: Machine) -> None:
    machine.shows(row(0, 8000, total=8192))
    code, out, err = machine.said("--wait", "2h", "--min-free", "20GiB", "--max-load", "100%")
    error, hint = err.splitlines()
    assert (code, out) == (5, "")
    assert "1 GPU with 20 GiB free: the largest GPU has 8 GiB" in error
    assert "--min-free" in hint
    code, _, err = machine.said("--wait", "2h", PATH=str(LLMFT.parent))
    assert (code, err.splitlines()[0]) == (3, "error: no GPU to wait for: nvidia-smi was not found on the PATH")


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ("--wait 120", ["error: --wait: '120' has no unit", "hint: for example: --wait 2h"]),
        ("--min-free lots", ["error: --min-free: 'lots' is not a size such as 20GiB, 24GB or 512MiB"]),
        ("--max-load 30", ["error: --max-load: '30' is not a fraction from 0 to 1, or a percentage: 0.1 or 10%"]),
        ("--gpus 0", ["error: --gpus: '0' is not a whole number of 1 or more", "hint: for example: --gpus 2"]),
        ("--gpus two", ["error: --gpus: 'two' is not a whole number of 1 or more"]),
        ("--wait 1m --require-gpu", ["error: --require-gpu and --wait cannot be combined"]),
    ],
)
def test_malformed_flags(flags: str, lines: list[str], machine: Machine) -> None:
    code, out, err = machine.said(*flags.split())
    assert (code, out, err.splitlines()[: len(lines)]) == (2, "", lines)


def test_a_driver_that_fails_for_a_moment(machine: Machine) -> None:
    machine.shows(BUSY)
    waiting = machine.check("--wait", "10m", "--min-free", "20GiB")
    assert read_line(waiting).startswith("waiting for ")
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    machine.does(f'echo "{said}"; exit 9')
    assert read_line(waiting).startswith(f"no GPU to wait for: nvidia-smi: {said}")
    machine.shows(row(0, 81000))
    code, out, _ = ended(waiting)
    assert (code, out) == (0, "0\n")


@pytest.mark.parametrize("moment", ["between two polls", "while nvidia-smi hangs"])
def test_ctrl_c(moment: str, machine: Machine) -> None:
    machine.shows(BUSY)
    waiting = machine.check("--wait", "10m")
    assert read_line(waiting).startswith("waiting for ")
    if moment == "while nvidia-smi hangs":
        hung = machine.folder / "hung"
        # Ignores the signal, like a process that is stuck in the driver.
        machine.does(f"trap '' INT; touch {shlex.quote(str(hung))}; exec sleep 300")
        while not hung.exists():
            time.sleep(0.01)
    waiting.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = waiting.communicate(timeout=300) if moment == "between two polls" else last_words(waiting)
    assert time.monotonic() - started < 100
    assert (waiting.returncode, out, err.splitlines()) == (130, "", INTERRUPTED)


def last_words(process: subprocess.Popen[str]) -> tuple[str, str]:
    """stdout and the two lines of an error; a child that outlives the process may keep the pipes open."""
    process.wait(timeout=300)
    assert process.stdout is not None
    return process.stdout.read(), read_line(process) + read_line(process)


# -- in a job script


SCRIPT = (
    "gpu=$(llmft gpu-check --wait {wait} --min-free 20GiB) && "
    "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=$gpu sh -c 'echo trains on $CUDA_VISIBLE_DEVICES'"
)


def test_a_job_starts_on_the_card_that_came_free(machine: Machine) -> None:
    machine.shows(BUSY, row(1, 3215, 97))
    job = machine.start("sh", "-c", SCRIPT.format(wait="10m"))
    assert read_line(job).startswith("waiting for ")
    machine.shows(BUSY, row(1, 81000))
    assert ended(job) == (0, "trains on 1\n", "")


def test_a_job_does_not_start_without_a_card(machine: Machine) -> None:
    machine.shows(BUSY)
    code, out, _ = ended(machine.start("sh", "-c", SCRIPT.format(wait="1s")))
    assert (code, out) == (5, "")


# The lock goes to the `sleep`, so that the next job looks for a card once this one has taken its memory.
ONE_AFTER_THE_OTHER = (
    "gpu=$(flock lock sh -c 'llmft gpu-check --wait 10m --min-free 20GiB && {{ sleep 3 >&- & }}') && "
    "{{ touch taken-$gpu; echo job {name} has GPU $gpu; }}"
)


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_jobs_that_wait_under_a_lock_get_different_cards(machine: Machine) -> None:
    taken = "$([ -e taken-{index} ] && echo 80000 || echo 500)"
    cards = [ROW.format(index=index, load=0, total=81559, used=0, free="$((81559 - used))") for index in range(2)]
    machine.does("".join(f'used={taken.format(index=index)}; echo "{card}"\n' for index, card in enumerate(cards)))
    jobs = [machine.start("sh", "-c", ONE_AFTER_THE_OTHER.format(name=name)) for name in range(2)]
    said = [ended(job) for job in jobs]
    assert [code for code, _, _ in said] == [0, 0]
    assert {out[-6:] for _, out, _ in said} == {"GPU 0\n", "GPU 1\n"}


# -- memory that a process really holds


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds 300 MiB."""
    command = [sys.executable, "-c", HOLDER, "300"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_the_wait_ends_when_a_process_frees_its_memory(machine: Machine, holder: subprocess.Popen[str]) -> None:
    """The GPU has 512 MiB, of which the process's resident memory, by the kernel's count, is in use."""
    card = ROW.format(index=0, load=0, total=512, used="$used", free="$((512 - used))")
    machine.does(f"used=$(awk '/^VmRSS/ {{print int($2 / 1024)}}' /proc/{holder.pid}/status); echo \"{card}\"")
    waiting = machine.check("--wait", "10m", "--min-free", "400MiB", "--json")
    time.sleep(4)
    assert waiting.poll() is None, ended(waiting)
    assert holder.stdin is not None
    assert holder.stdout is not None
    freed = time.monotonic()
    holder.stdin.write("free it\n")
    assert holder.stdout.readline() == "freed\n"
    code, out, err = ended(waiting)
    assert (code, err) == (0, "")
    assert json.loads(out)["gpu_indices"] == [0]
    assert json.loads(out)["waited_seconds"] > 2
    assert time.monotonic() - freed < 100
    assert holder.poll() is None
