"""Output that nobody reads: notes are dropped, results too once the work is done, and nothing ends in a traceback."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from llmft_cli.cli.standard_streams import Dropping, discard

# `llmft` with a command that says more than a pipe holds, and has a result.
PROGRAM = """
import os, pathlib, sys
from llmft_cli.base.errors import DataError, LlmftError
from llmft_cli.cli import app
from llmft_cli.cli.console import ChatScreen, Console
from llmft_cli.cli.views.sections import named

def command(arguments):
    console = Console(as_json="--json" in arguments)
    with console.track("working", total=1000) as advance:
        for step in range(1000):
            console.note("a note")
            console.warn("a warning")
            advance(1, loss=1.0)
    if "native" in arguments:
        os.write(1, b"error detected")
    if "fail" in arguments:
        raise DataError("no rows")
    if "worker" in arguments:
        raise BrokenPipeError(32, "a process of a library went away")
    if "talk" in arguments:
        ChatScreen(console).text("x" * 100_000)
    pathlib.Path("done").write_text("done")
    console.result("train", "x", {"text": "x" * 100_000}, [named("done", {"text": "x" * 5_000})])
    return 0

app.run_command = command
app.main()
"""


def run(*arguments: str, folder: Path, out: int = subprocess.PIPE, err: int = subprocess.PIPE, read: int = 0) -> int:
    """The exit code of a command where pipes are closed after some bytes were read."""
    program = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(program, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err) as process:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.read(read)
                stream.close()
        return process.wait(timeout=300)


def is_done(folder: Path) -> bool:
    return (folder / "done").exists()


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize("streams", ["both", "stderr", "stdout"])
def test_a_command_goes_on_to_its_end(arguments: list[str], streams: str, tmp_path: Path) -> None:
    """`llmft train 2>&1 | head -5` ended the training with exit 0, while the ledger said failed."""
    null = subprocess.DEVNULL
    out, err = {"both": (-1, subprocess.STDOUT), "stderr": (null, -1), "stdout": (-1, null)}[streams]
    assert run(*arguments, folder=tmp_path, out=out, err=err, read=20 if streams == "both" and not arguments else 0) == 0
    assert is_done(tmp_path)


@pytest.mark.parametrize(("arguments", "code"), [(["fail"], 4), (["fail", "--json"], 4), (["worker"], 1), (["talk"], 141)])
def test_the_exit_code_is_that_of_the_command(arguments: list[str], code: int, tmp_path: Path) -> None:
    """141 is what a shell reports of programs that a closed pipe ends; a library's broken pipe is another matter."""
    out = subprocess.DEVNULL if arguments == ["worker"] else subprocess.PIPE
    assert run(*arguments, folder=tmp_path, out=out, err=subprocess.PIPE) == code
    assert not is_done(tmp_path)


def test_what_native_code_prints_is_no_part_of_a_result(tmp_path: Path) -> None:
    """bitsandbytes wrote to stdout on a GPU whose memory was taken, and the JSON of gpu-check could not be read."""
    program = [sys.executable, "-c", PROGRAM, "native", "--json"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout)["command"] == "train"
    assert "error detected" in done.stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "1</dev/null", "2>/dev/full"])
def test_streams_that_were_never_open(redirection: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    line = f"exec {sys.executable} program.py --json {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr
    assert is_done(tmp_path)
    assert (tmp_path / "done").read_text() == "done"  # no message was written into a file that took a closed stream's number


@pytest.mark.parametrize("arguments", [[], ["--json"], ["talk"], ["fail", "--json"]])
def test_a_full_disk_is_said_by_the_exit_code(arguments: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        program = [sys.executable, "-c", PROGRAM, *arguments]
        done = subprocess.run(program, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == (4 if "fail" in arguments else 3)
    assert "Traceback" not in done.stderr
    assert ("error: no space left on the disk" in done.stderr) is ("--json" not in arguments)


@pytest.mark.parametrize("arguments", [[], ["--json"], ["fail"]])
def test_a_terminal_that_is_closed(arguments: list[str], tmp_path: Path) -> None:
    """A write to it is an I/O error, also for a progress bar."""
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        os.read(main, 1)
        os.close(main)
        assert process.wait(timeout=300) == (4 if arguments == ["fail"] else 0)
    assert is_done(tmp_path) is (arguments != ["fail"])


def test_a_stream_that_drops_has_everything_else() -> None:
    stream = io.StringIO()
    dropping = Dropping(stream)
    assert dropping.write("abc") == 3
    dropping.flush()
    assert (stream.getvalue(), dropping.isatty(), dropping.writable()) == ("abc", False, True)
    discard(stream)  # has no descriptor
