"""SIGTERM and SIGHUP end a command as an interrupt, once, and not where they are ignored."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, pathlib, signal, sys
from llmft_cli.cli import app

def command(arguments):
    try:
        for number in arguments:
            os.kill(os.getpid(), int(number))
        pathlib.Path("end").write_text("reached")
    finally:
        for number in arguments:  # a terminal's end sends several, also while things are cleared up
            os.kill(os.getpid(), int(number))
        pathlib.Path("cleared").touch()
    return 0

app.run_command = command
app.main()
"""
HANG_UP, TERMINATE = str(int(signal.SIGHUP)), str(int(signal.SIGTERM))


def run(folder: Path, *numbers: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [*before.split(), sys.executable, "-c", PROGRAM, *numbers]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("numbers", [[HANG_UP], [TERMINATE], [TERMINATE, HANG_UP], [HANG_UP, TERMINATE, HANG_UP]])
def test_a_signal_ends_a_command_as_an_interrupt(numbers: list[str], tmp_path: Path) -> None:
    done = run(tmp_path, *numbers)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["error: interrupted", "hint: finished work is saved"]
    assert {file.name for file in tmp_path.iterdir()} == {"cleared"}


def test_nohup_keeps_a_command_running(tmp_path: Path) -> None:
    done = run(tmp_path, HANG_UP, before="nohup")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"end", "cleared"}
