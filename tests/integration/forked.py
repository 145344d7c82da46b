"""Becomes `llmft` in a process that is forked from one with the libraries loaded; the fixture `start` runs it with its globals.

What it is given: arguments, folder, environment, streams (paths for stdin, stdout and stderr),
halt_at, a text: the process stops itself (SIGSTOP) when it has written that to stderr, and
unprivileged: whether permissions of files hold for it even where tests run as root.
"""

import ctypes
import io
import os
import signal
import sys

given = globals()


class Halting(io.TextIOWrapper):
    def write(self, text: str) -> int:
        count = super().write(text)
        if given["halt_at"] and given["halt_at"] in text:
            self.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
        return count


def obey_permissions() -> None:
    """Give up the capabilities DAC_OVERRIDE and DAC_READ_SEARCH, which let root read and write anything (capset(2))."""
    version_and_process = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of capabilities 0 to 31 and 32 to 63
    system = ctypes.CDLL(None)
    assert system.capget(version_and_process, sets) == 0
    for number in range(3):
        sets[number] &= ~(1 << 1 | 1 << 2)
    assert system.capset(version_and_process, sets) == 0


for number, path in enumerate(given["streams"]):
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
    os.dup2(os.open(path, flags, 0o644), number)
sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
sys.stderr = Halting(os.fdopen(2, "wb"), encoding="utf-8", line_buffering=True)
os.chdir(given["folder"])
if given["unprivileged"]:
    obey_permissions()
os.environ.clear()
os.environ.update(given["environment"])
sys.argv = ["llmft", *given["arguments"]]

from llmft_cli.cli.app import main  # noqa: E402

main()
