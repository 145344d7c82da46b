"""System and library errors that become errors for the user."""

from __future__ import annotations

import errno
import os

import pytest

from llmft_cli.base.errors import (
    LlmftError,
    MachineError,
    OutOfMemory,
    UsageError,
    from_library_error,
    from_os_error,
    is_interrupt,
)

EXIT_CODES = {
    "usage": 2,
    "config": 2,
    "stage": 2,
    "environment": 3,
    "model": 3,
    "data": 4,
    "memory": 5,
    "verification": 6,
    "interrupted": 130,
    "bug": 1,
}


def test_every_kind_has_the_exit_code_of_the_design() -> None:
    kinds = {kind.kind: kind.exit_code for kind in (LlmftError, *LlmftError.__subclasses__())}
    assert kinds == EXIT_CODES


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(number: int) -> None:
    known = from_os_error(OSError(number, os.strerror(number), "/runs/x/run.json"))
    assert isinstance(known, MachineError)
    assert known.message == "no space left on the disk at /runs/x/run.json"
    assert "another disk" in known.hint


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
        (errno.EPERM, "Operation not permitted"),
    ],
)
def test_forbidden_files(number: int, reason: str) -> None:
    known = from_os_error(OSError(number, reason, "/runs"))
    assert isinstance(known, MachineError)
    assert known.message == f"permission denied: /runs ({reason})"
    assert "permissions" in known.hint


def test_other_file_errors_are_not_the_machines() -> None:
    assert from_os_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
    assert from_os_error(OSError("only text")) is None


@pytest.mark.parametrize(
    "error",
    [
        # seen with safetensors 0.6, tokenizers 0.23 and torch 2.13 on a full and a read-only tmpfs
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_full_disk_in_a_librarys_words(error: Exception) -> None:
    known = from_library_error(error)
    assert isinstance(known, MachineError)
    assert known.message == "no space left on the disk"


@pytest.mark.parametrize(
    "error",
    [
        Exception('Error while serializing: I/O error: Read-only file system (os error 30) at path "/x/.tmpAmi6Pl"'),
        RuntimeError("[enforce fail at inline_container.cc:747] . open file failed with strerror: Read-only file system"),
    ],
)
def test_read_only_disk_in_a_librarys_words(error: Exception) -> None:
    known = from_library_error(error)
    assert isinstance(known, MachineError)
    assert known.message == "permission denied (Read-only file system)"


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
            "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (OutOfMemoryError(""), "out of memory"),
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 728. TiB for an array"), "out of memory: Unable to allocate 728. TiB for an array"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory: Cannot allocate memory",
        ),
        (RuntimeError("CUDA error: out of memory"), "out of memory: Cannot allocate memory"),
    ],
)
def test_exhausted_memory(error: Exception, message: str) -> None:
    known = from_library_error(error)
    assert isinstance(known, OutOfMemory)
    assert (known.message, known.hint) == (message, "")


def wrapped(error: BaseException, outer: Exception) -> Exception:
    try:
        try:
            raise error
        except BaseException as cause:
            raise outer from cause
    except Exception as raised:
        return raised


def test_a_cause_inside_a_librarys_own_error_is_found() -> None:
    known = from_library_error(wrapped(OSError(errno.ENOSPC, "No space", "/x"), ValueError("while generating the dataset")))
    assert known is not None
    assert known.message == "no space left on the disk at /x"


def test_what_is_not_known_stays_a_bug() -> None:
    assert from_library_error(KeyError("input_ids")) is None
    assert from_library_error(wrapped(FileNotFoundError("x"), ValueError("y"))) is None


def test_interrupts_are_seen_through_the_errors_that_libraries_make_of_them() -> None:
    assert is_interrupt(KeyboardInterrupt())
    assert is_interrupt(wrapped(KeyboardInterrupt(), ImportError("initialization failed")))
    assert not is_interrupt(wrapped(ValueError("x"), ImportError("initialization failed")))


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP])
def test_a_path_that_no_file_can_have_is_an_error_in_usage(number: int) -> None:
    """A name of 5,000 characters as --model, --plan or RUN was a bug."""
    found = from_os_error(OSError(number, os.strerror(number), "x" * 5000))
    assert isinstance(found, UsageError)
    assert found.message == f"{'x' * 60}...: {os.strerror(number)}"
