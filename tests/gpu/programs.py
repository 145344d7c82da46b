"""Programs on the GPU with a timeout: one that does not answer in time fails the test, with its stack."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, NoReturn

import pytest

# gpu-check takes 13 s on a machine with an H100, most of it for importing torch and bitsandbytes.
LIMIT_SECONDS = 60.0
LAST_WORDS_SECONDS = 5.0


class Lines:
    """Reads the lines of a pipe in a thread, so that waiting for one can time out."""

    def __init__(self, pipe: IO[str]) -> None:
        self._lines: SimpleQueue[str] = SimpleQueue()
        Thread(target=self._read, args=[pipe], daemon=True).start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._lines.put(line)
        self._lines.put("")

    def next(self, limit_seconds: float) -> str:
        """The next line, "" at the end."""
        return self._lines.get(timeout=limit_seconds)

    def said(self) -> str:
        """The rest of the output, until it ends or the timeout."""
        lines = []
        with suppress(Empty):
            while line := self.next(LAST_WORDS_SECONDS):
                lines.append(line)
        return "".join(lines)


class Program:
    """A running program, with pipes."""

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command,
            # Has Python print where each of its threads is when it is aborted.
            env={**os.environ, **(environment or {}), "PYTHONFAULTHANDLER": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self.out, self.err = Lines(self._process.stdout), Lines(self._process.stderr)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def says(self, lines: Lines, limit_seconds: float = LIMIT_SECONDS) -> str:
        """The next line of its output or of its errors."""
        try:
            return lines.next(limit_seconds)
        except Empty:
            self._fail(f"said nothing for {limit_seconds:g} s")

    def is_told(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")

    def ended(self, limit_seconds: float = LIMIT_SECONDS) -> subprocess.CompletedProcess[str]:
        """Its final result."""
        try:
            code = self._process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self._fail(f"did not end within {limit_seconds:g} s")
        return subprocess.CompletedProcess(self._command, code, self.out.said(), self.err.said())

    def kill(self) -> None:
        """Kill it, with a short wait, because a process that hangs in the driver does not end."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LAST_WORDS_SECONDS)

    def _fail(self, what: str) -> NoReturn:
        places = places_in_the_kernel(self.pid)
        self._process.send_signal(signal.SIGABRT)
        said = f"its output: {self.out.said()!r}\nits errors:\n{self.err.said()}"
        self.kill()
        pytest.fail(f"{' '.join(self._command)[:200]} {what}\nits threads in the kernel: {places}\n{said}", pytrace=False)


# With the command, and what its environment has beside ours.
Start = Callable[..., Program]
# With its flags.
GpuCheck = Callable[..., subprocess.CompletedProcess[str]]


def places_in_the_kernel(pid: int) -> str:
    """The kernel stacks of a process's threads, which show whether they hang in the driver."""
    places = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
            places.append(f"{(thread / 'comm').read_text().strip()} {state} {(thread / 'wchan').read_text()}")
    return ", ".join(places)
