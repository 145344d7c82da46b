"""Errors a user can act on: what is wrong, where, the offending value, and how to fix it.

Each kind has an exit code that job scripts rely on. Errors are raised where the cause is known and
shown in one place, the error boundary of `cli/app.py`. Any other exception is a bug in llmft and
exits with 1.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
UNUSABLE_PATH = {errno.ENAMETOOLONG, errno.ELOOP}
# A directory where a file is needed, or the reverse.
IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY}
FAILING = {errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ESTALE}
# Messages of library errors without an errno. On a full disk, torch.save only mentions positions in its archive.
TEXTS = {
    # C++ streams say "iostream error", of whatever could not be written.
    errno.ENOSPC: ("No space left on device", "os error 28", "PytorchStreamWriter failed", "unexpected pos", "iostream error"),
    errno.EROFS: ("Read-only file system", "os error 30"),
    errno.EACCES: ("Permission denied (os error 13)", "strerror: Permission denied"),
    errno.ENOMEM: ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
}


class LlmftError(Exception):
    """An error with a `kind` and an `exit_code`.

    Args:
        message: what is wrong, where, with the offending value.
        hint: the command or setting that fixes it.
        details: results that are available despite the error, for `--json`.
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
    """The environment lacks something: driver, library, network, token, disk."""

    kind = "environment"
    exit_code = 3


class ModelError(LlmftError):
    """A base model cannot be obtained or used."""

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


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the process must end, where Ctrl-C may end only what it is doing."""


class Interrupted(LlmftError):
    """The user or the system asked to stop; finished work is saved."""

    kind = "interrupted"
    exit_code = 130


def from_os_error(error: OSError) -> LlmftError | None:
    """The user-facing error for a failed file operation, or None if the machine is not the cause.

    Any write can hit a full disk or a read-only folder, so they are handled here and not at every call.
    """
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in DISK_FULL:
        return MachineError(f"no space left on the disk{where}", "free some space, or keep the run on another disk")
    if error.errno in FORBIDDEN:
        named = f": {error.filename}" if error.filename else ""
        return MachineError(
            f"permission denied{named} ({error.strerror})",
            "fix its permissions, or keep the run elsewhere",
        )
    if error.errno in UNUSABLE_PATH:
        return UsageError(f"{str(error.filename)[:60]}...: {error.strerror}", "give another path or name")
    if error.errno in IN_THE_WAY:
        return MachineError(f"something is in the way{where} ({error.strerror})", "move it away, or keep the run elsewhere")
    if error.errno in FAILING:
        return MachineError(f"reading or writing failed{where}: {error.strerror}", "check the disk and the limits (ulimit -a)")
    if error.errno == errno.ENOMEM:
        return OutOfMemory(f"out of memory: {error.strerror}")
    return None


def from_library_error(error: BaseException) -> LlmftError | None:
    """The user-facing error for a library error whose cause is only in its text or in its `__cause__`.

    safetensors, tokenizers and torch report a full disk only in the text, and so does CUDA with a full GPU.
    """
    text = str(error)
    for number, signs in TEXTS.items():
        if any(sign in text for sign in signs):
            return from_os_error(OSError(number, os.strerror(number)))
    # torch's out-of-memory class is recognised by name, which avoids importing torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(": ".join(["out of memory", *text.splitlines()[:1]]))
    cause = error.__cause__
    if isinstance(cause, OSError) and (known := from_os_error(cause)):
        return known
    return from_library_error(cause) if cause else None


def first_line(error: object) -> str:
    """The first non-blank line of an error's text, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def is_interrupt(error: BaseException | None, kind: type[BaseException] = KeyboardInterrupt) -> bool:
    """Whether Ctrl-C caused an error: library code, imports above all, may raise another one from KeyboardInterrupt."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
