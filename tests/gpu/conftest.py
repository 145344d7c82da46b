"""Helper programs for the tests, and torch's allocator configured as in llmft."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from programs import GpuCheck, Program, Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program; it is stopped at the end of the test."""
    started: list[Program] = []

    def run(command: list[str], environment: Mapping[str, str] | None = None) -> Program:
        started.append(Program(command, environment))
        return started[-1]

    yield run
    for program in started:
        program.kill()


@pytest.fixture
def gpu_check(start: Start) -> GpuCheck:
    """Run `llmft gpu-check`."""
    return lambda *flags: start([sys.executable, "-m", "llmft_cli", "gpu-check", *flags]).ended()


@pytest.fixture(scope="module")
def segments_that_grow() -> Iterator[None]:
    """Configure torch's allocator like `libraries.configure_libraries`, whatever other tests did."""
    import torch

    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    yield
    torch.cuda.memory._set_allocator_settings("expandable_segments:False")
