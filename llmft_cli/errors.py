"""Errors a user can act on: what is wrong, where, the offending value, and what mends it.

Each kind carries the exit code that job scripts rely on. They are raised where the fact is
known and shown in one place, the error boundary of `cli.py`. Anything else that escapes is a
bug of ours and exits 1.
"""

from __future__ import annotations

import errno

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}


class LlmftError(Exception):
    """An error with a `kind` and an `exit_code`.

    Args:
        message: what is wrong, with the offending value and where it stands.
        hint: the command or setting that mends it.
    """

    kind = "bug"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


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
        return MachineError(f"no space left on the disk{where}", "free some space, or put the run on another disk with --run")
    if error.errno in NOT_WRITABLE:
        return MachineError(
            f"not allowed to write{where} ({error.strerror})",
            "choose a run directory you can write to, or mend its permissions",
        )
    return None


def from_library_error(error: Exception) -> LlmftError | None:
    """The user's version of an error that a library raised with its cause only in the text.

    safetensors, torch.save and Arrow report a full disk, and CUDA an exhausted card, in words.
    """
    text = str(error)
    if "No space left on device" in text or "os error 28" in text:
        return from_os_error(OSError(errno.ENOSPC, "No space left on device"))
    if "Read-only file system" in text or "os error 30" in text:
        return from_os_error(OSError(errno.EROFS, "Read-only file system"))
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        first_line = text.splitlines()[0]
        return OutOfMemory(
            f"out of memory: {first_line}", "use a smaller --batch-size or --max-seq-length, or --gradient-checkpointing"
        )
    return None
