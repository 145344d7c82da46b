"""How much host memory may be used, and reusing freed memory."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from llmft_cli.base import cpu_memory
from llmft_cli.base.cpu_memory import has_room, keep_freed_memory

ALLOCATE_AND_FREE = """
import resource
from llmft_cli.base.cpu_memory import keep_freed_memory

def pages_cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = pages_cleared()
keep_freed_memory()
pages_cleared()
print(first, pages_cleared())
"""


def test_a_quarter_of_the_free_ram_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000))
    assert has_room(1000)
    assert not has_room(1001)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_memory_that_was_freed_is_not_cleared_again() -> None:
    """The system clears each 4 KiB page on first access; with huge pages there are fewer of them."""
    done = subprocess.run([sys.executable, "-c", ALLOCATE_AND_FREE], check=True, capture_output=True, text=True)
    first, then = map(int, done.stdout.split())
    assert first >= 10
    assert then <= first // 10


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()
