"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is half-made is removed, and the ledger says `interrupted`.

A job scheduler sends SIGTERM. A terminal that is closed, as by a lost ssh connection, sends SIGHUP.
"""

from __future__ import annotations

import signal
from types import FrameType

from llmft_cli.base.errors import Terminated

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


def end_like_an_interrupt() -> None:
    """Raise `Terminated` on the first signal, where it is not ignored, as by `nohup`."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, terminate)


def terminate(number: int, frame: FrameType | None) -> None:
    # A terminal's end sends several signals. The others must not interrupt the clearing up.
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Terminated


def end_at_once() -> None:
    """Let the signals end the process as they do without a handler."""
    for number in SIGNALS:
        if signal.getsignal(number) is terminate:
            signal.signal(number, signal.SIG_DFL)
