"""Standard streams that nobody reads: a closed pipe, a closed terminal, or a stream that was never open.

Notes and progress that cannot be written are dropped. What a command computes does not depend on who is watching.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

# A pipe whose reader has ended, a terminal that was closed, and a descriptor that is not open for writing.
READER_IS_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)

STDOUT, STDERR = 1, 2


class Dropping:
    """A text stream that drops what cannot be written; everything else is up to the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_safe() -> None:
    """Open the standard streams that are closed, on the null device, and let stderr drop what it cannot write.

    Otherwise the next file to be opened would take the number of a closed stream, and messages of libraries would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Python has None for streams that were closed at its start.
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    sys.stderr = Dropping(stderr)  # type: ignore[assignment]


def keep_stdout_for_results() -> None:
    """Let what native code of libraries prints to descriptor 1 go to stderr, unless stdout is a terminal.

    bitsandbytes does so when a product fails, in front of the JSON object that a script reads. `sys.stdout` gets a
    descriptor of its own. On a terminal it keeps its own, as `input` edits lines there alone.
    """
    try:
        replaced = sys.stdout.fileno() != STDOUT
    except OSError:  # a stream in memory
        replaced = True
    if replaced or sys.stdout.isatty():
        return
    results = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    sys.stdout = os.fdopen(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def is_reader_gone(error: BaseException) -> bool:
    """Whether a failed write means that nobody reads the stream any more."""
    return isinstance(error, OSError) and error.errno in READER_IS_GONE


def discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that is written to it from now on, to the null device."""
    with suppress(OSError):  # a stream without a descriptor holds nothing back
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def is_stdout_closed() -> bool:
    """Whether nobody reads stdout any more: its pipe has no reader, or its terminal was closed."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always reported
    return bool(poll.poll(0))


def finish_stdout() -> None:
    """Write out what stdout still holds, unless nobody reads it.

    Raises:
        OSError: it cannot be written for another reason, such as a full disk.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        if not is_reader_gone(error):
            raise
