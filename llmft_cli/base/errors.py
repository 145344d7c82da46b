"""Errors a user can act on: what is wrong, where, the offending value, and what mends it.

Each kind carries the exit code that job scripts rely on. They are raised where the fact is
known and shown in one place, the error boundary of `cli/app.py`. Anything else that escapes is a
bug of ours and exits 1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# What libraries that have no error number say. torch.save on a full disk speaks of positions in its archive only.
TEXTS = {
    errno.ENOSPC: ("No space left on device", "os error 28", "PytorchStreamWriter failed", "unexpected pos"),
    errno.EROFS: ("Read-only file system", "os error 30"),
    errno.EACCES: ("Permission denied (os error 13)", "strerror: Permission denied"),
    errno.ENOMEM: ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
}
SMALLER = "use a smaller --batch-size or --max-seq-length, or --gradient-checkpointing"


class LlmftError(Exception):
    """An error with a `kind` and an `exit_code`.

    Args:
        message: what is wrong, with the offending value and where it stands.
        hint: the command or setting that mends it.
        details: what was found all the same, for `--json`.
    """

    kind = "bug"
    exit_code = 1

    def __init__(self, message: str, hint: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}


class UsageError(LlmftError):
    kind = "usage"
    exit_code = 2


class ConfigError(LlmftError):
    kind = "config"
    exit_code = 2


class StageError(LlmftError):
    """A run lacks the stage that a command needs, or the stage is stale, locked or already done."""

    kind = "stage"
    exit_code = 2


class MachineError(LlmftError):
    """The environment is not up to it: driver, library, network, token, disk."""

    kind = "environment"
    exit_code = 3


class ModelError(LlmftError):
    """A base model cannot be had or cannot be used."""

    kind = "model"
    exit_code = 3


class DataError(LlmftError):
    kind = "data"
    exit_code = 4


class OutOfMemory(LlmftError):
    kind = "memory"
    exit_code = 5


class VerificationError(LlmftError):
    kind = "verification"
    exit_code = 6


class Interrupted(LlmftError):
    """The user or the system asked to stop; what was done is saved."""

    kind = "interrupted"
    exit_code = 130


def from_os_error(error: OSError) -> LlmftError | None:
    """The user's version of a failed file operation, or None where it is not a matter of the machine.

    Full disks and read-only folders can strike at any write, so they are named here once
    instead of at every call.
    """
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in DISK_FULL:
        return MachineError(f"no space left on the disk{where}", "free some space, or keep the run on another disk")
    if error.errno in FORBIDDEN:
        named = f": {error.filename}" if error.filename else ""
        return MachineError(
            f"permission denied{named} ({error.strerror})",
            "fix its permissions, or keep the run where you can write",
        )
    if error.errno == errno.ENOMEM:
        return OutOfMemory(f"out of memory: {error.strerror}", SMALLER)
    return None


def from_library_error(error: BaseException) -> LlmftError | None:
    """The user's version of an error that a library raised with its cause only in the text, or wrapped in its own.

    safetensors, tokenizers and torch report a full disk, and CUDA an exhausted card, in words.
    """
    text = str(error)
    for number, signs in TEXTS.items():
        if any(sign in text for sign in signs):
            return from_os_error(OSError(number, os.strerror(number)))
    # torch's own class for an exhausted card or host is known by name, so that torch need not be imported.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(": ".join(["out of memory", *text.splitlines()[:1]]), SMALLER)
    cause = error.__cause__
    if isinstance(cause, OSError) and (known := from_os_error(cause)):
        return known
    return from_library_error(cause) if cause else None


def first_line(error: object) -> str:
    """The first line of an error's text that says something, or else what kind of error it is."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: library code that it strikes, imports above all, may raise another one from it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
