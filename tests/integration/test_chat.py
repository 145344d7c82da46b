"""chat on a tiny model: sampling obeys the seed, and at a terminal one failure does not end the talk."""

from __future__ import annotations

import os
import pty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Run, Started


def test_sampling_obeys_the_seed(trained_copy: Path, run: Run) -> None:
    def reply(seed: int) -> str:
        flags = ("--temperature", 3, "--max-new-tokens", 40, "--seed", seed)
        done = run("chat", "run", "--prompt", "Say something", *flags, folder=trained_copy.parent)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = reply(1)
    assert len(first) > 40
    assert reply(1) == first
    assert reply(2) != first


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A terminal to type into, and its path."""
    master, slave = pty.openpty()
    yield master, os.ttyname(slave)
    os.close(master)
    os.close(slave)


def test_what_cannot_be_saved_does_not_end_the_talk(
    terminal: tuple[int, str], trained_copy: Path, start: Callable[..., Started]
) -> None:
    (trained_copy / "chat").write_text("a file where the folder of transcripts should be")
    keyboard, path = terminal
    command = start("chat", "run", folder=trained_copy.parent, stdin_from=path)
    command.wait_for("/exit to quit")
    os.write(keyboard, b"What is 4 and 4?\n/save talk\nWhat is 5 and 5?\n/exit\n")
    done = command.finish()
    assert (done.returncode, done.stdout.count("It is")) == (0, 2), done.stderr
    assert done.stderr.count("failed: ") == 1
