"""chat on a tiny model: sampling depends on the seed, and at a terminal one failure does not end the conversation."""

from __future__ import annotations

import json
import os
import pty
import signal
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
    assert done.stderr.count("warning: the conversation is not saved: ") == 1
    assert done.stderr.count("failed: ") == 1


def test_bytes_that_are_not_utf8_are_said_and_the_conversation_survives_the_terminal(
    terminal: tuple[int, str], trained_copy: Path, start: Callable[..., Started], run: Run
) -> None:
    """A typed byte that was not UTF-8 ended the conversation in a traceback, and with it everything said before."""
    keyboard, path = terminal
    command = start("chat", "run", folder=trained_copy.parent, stdin_from=path)
    command.wait_for("/exit to quit")
    os.write(keyboard, b"caf\xe9?\nWhat is 5 and 5?\n")
    command.wait_until(lambda: any("5 and 5" in file.read_text() for file in (trained_copy / "chat").glob("*.jsonl")))
    command.interrupt(signal.SIGHUP)
    done = command.finish()
    assert done.returncode == 130
    assert "warning: the line is not UTF-8 (byte 0xe9 in column 4); what is not UTF-8 is replaced by \ufffd" in done.stderr
    [file] = (trained_copy / "chat").iterdir()
    messages = json.loads(file.read_text())["messages"]
    assert [message["content"] for message in messages][::2] == ["caf\ufffd?", "What is 5 and 5?"]
    flags = ("--run", "again", "--max-seq-length", 256, "--val-size", 0)
    model = json.loads((trained_copy / "run.json").read_text())["stages"]["prepare"]["config"]["model"]
    prepared = run("prepare", file, *flags, "--model", model, "--json", folder=trained_copy.parent)
    assert json.loads(prepared.stdout)["rows"]["kept"] == 1, prepared.stdout


def test_one_question_leaves_no_file(trained_copy: Path, run: Run) -> None:
    assert run("chat", "run", "--prompt", "hi", "--max-new-tokens", 4, folder=trained_copy.parent).returncode == 0
    assert not (trained_copy / "chat").exists()


@pytest.mark.parametrize("arguments", ["chat run --prompt hi", "eval run --max-new-tokens 4", "merge run"])
def test_a_device_of_the_training_does_not_bind_other_commands(arguments: str, trained_copy: Path, run: Run) -> None:
    """A run trained with `--device cuda --compute-dtype fp16` could not be used on a machine without a GPU."""
    ledger = json.loads((trained_copy / "run.json").read_text())
    ledger["stages"]["train"]["config"] |= {"device": "cuda", "compute_dtype": "fp16"}
    (trained_copy / "run.json").write_text(json.dumps(ledger))
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    done = run(*arguments.split(), folder=trained_copy.parent, **environment)
    assert done.returncode == 0, done.stderr
    asked = run(*arguments.split(), "--device", "cuda", folder=trained_copy.parent, **environment)
    assert asked.returncode in (2, 3), asked.stderr
