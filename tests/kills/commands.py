"""Runs command lines of llmft in forks of this process, which spares seconds of imports, and kills them at chosen moments.

What a command does to the disk is seen through Python's audit events; together with the batches that it computes, these
are the events that a kill can be tied to. A file is torn by the system itself: a limit on the size of files ends the
process in the middle of the write that exceeds it, whichever library writes.
"""

from __future__ import annotations

import functools
import gc
import importlib
import os
import re
import resource
import selectors
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a command line imports before it works, and functions whose calls are events, too.
IMPORTS = (
    "llmft_cli.cli.app",
    "llmft_cli.cli.console",
    "llmft_cli.cli.views.stages",
    "llmft_cli.data.prepare",
    "llmft_cli.training.loop.trainer",
    "llmft_cli.training.loop.callbacks",
    "llmft_cli.training.loop.expected_end",
    "llmft_cli.training.loop.resuming",
    "llmft_cli.merging.merge",
    "llmft_cli.evaluation.evaluate",
    "transformers.models.llama.modeling_llama",
    "peft",
    "bitsandbytes",
    "datasets",
    "matplotlib.figure",
    "scipy.stats",
)
COMPUTATIONS = {
    "compute held-out loss": ("llmft_cli.training.loop.held_out", "held_out_loss"),
    "compute a batch": ("llmft_cli.training.step.loss", "summed_loss"),
    "compute a training batch": ("llmft_cli.training.loop.trainer", "summed_loss"),
    "compare models": ("llmft_cli.merging.merge", "next_token_logits"),
    "compute answers": ("llmft_cli.evaluation.answers", "answer_all"),
    "write a state with torch.save": ("torch", "save"),
    "write an adapter's weights": ("peft.peft_model", "safe_save_file"),
    "write a model's weights": ("transformers.modeling_utils", "safe_save_file"),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
VARIABLE = ((re.compile(r"\.tmp-\w+"), ".tmp-*"), (re.compile(r"(checkpoint|earlier)([-/])\d+"), r"\1\2N"))
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass(frozen=True)
class Moment:
    """When a command is killed: after so many seconds, or by an event.

    Attributes:
        event, number: the kill comes before the event of this name, of so many.
        most_bytes: the kill comes later, when a file grows beyond this, and leaves it torn.
        signal: what is sent; SIGKILL, or a signal that asks to stop.
    """

    seconds: float | None = None
    event: str = ""
    number: int = 1
    most_bytes: int | None = None
    signal: signal.Signals = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative for a signal), what it wrote, the events, and its duration."""

    code: int
    text: str
    events: list[str]
    seconds: float

    @property
    def was_killed(self) -> bool:
        return self.code in KILLED

    @property
    def was_stopped(self) -> bool:
        """Whether it ended because it was asked to, itself or by default."""
        return self.code in (130, -signal.SIGTERM)


def load_libraries() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def run_function(function: Callable[[], object]) -> None:
    """Call a function in a process of its own: one that has computed cannot be forked again."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def run_command(arguments: Sequence[object], folder: Path, moment: Moment | None = None) -> Ended:
    """Run a command line of llmft in a folder, and kill it at the moment, if it comes to that."""
    said, told = os.pipe(), os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        become_command([str(argument) for argument in arguments], folder, said[1], told[1], moment)
    for _, writing in (said, told):
        os.close(writing)
    content = read_until_closed([said[0], told[0]], pid, moment.seconds if moment else None)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    events = content[told[0]].decode().splitlines()
    return Ended(code, content[said[0]].decode(errors="replace"), events, time.monotonic() - started)


def read_until_closed(pipes: Sequence[int], pid: int, seconds: float | None) -> dict[int, bytes]:
    """What a process writes into the pipes; it is killed after so many seconds."""
    content = dict.fromkeys(pipes, b"")
    deadline = None if seconds is None else time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if deadline is not None and time.monotonic() >= deadline:
                os.kill(pid, signal.SIGKILL)
                deadline = None
            for key, _ in ready:
                if read := os.read(key.fd, 1 << 16):
                    content[key.fd] += read
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return content


def become_command(arguments: list[str], folder: Path, said: int, told: int, moment: Moment | None) -> None:
    """The rest of the fork's life."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.chdir(folder)
        sys.argv = ["llmft", *arguments]
        watch(functools.partial(happened, told, Counter(), moment))
        from llmft_cli.cli.app import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def happened(told: int, counts: Counter[str], moment: Moment | None, event: str) -> None:
    """Tell an event that is about to happen, and do what the moment asks for."""
    os.write(told, f"{event}\n".encode())
    counts[event] += 1
    if moment is None or event != moment.event or counts[event] != moment.number:
        return
    if moment.most_bytes is None:
        os.kill(os.getpid(), moment.signal)
        return
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (moment.most_bytes, moment.most_bytes))


def watch(tell: Callable[[str], None]) -> None:
    """Tell every event of this process from now on."""

    def hook(name: str, values: tuple[Any, ...]) -> None:
        if event := event_of(name, values):
            tell(event)

    sys.addaudithook(hook)
    for event, (module, name) in COMPUTATIONS.items():
        module_object = importlib.import_module(module)
        setattr(module_object, name, told_first(getattr(module_object, name), event, tell))


def told_first(function: Callable[..., Any], event: str, tell: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        tell(event)
        return function(*arguments, **named)

    return wrapper


def event_of(name: str, values: tuple[Any, ...]) -> str | None:
    """A change to the current folder as text, such as `delete run/metrics.jsonl`; None for anything else."""
    if name == "open":
        path, _, flags = values
        return named("write", path) if isinstance(flags, int) and flags & WRITING else None
    if name == "os.rename":
        return named("rename to", values[1], values[3])
    if name in ("os.remove", "os.rmdir"):
        return named("delete", values[0], values[1])
    if name == "os.mkdir":
        return named("make", values[0], values[2])
    return None


def named(verb: str, path: Any, folder: int = -1) -> str | None:
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    base = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()
    relative = os.path.relpath(base / os.fsdecode(path))
    if relative.startswith(".."):
        return None
    for pattern, general in VARIABLE:
        relative = pattern.sub(general, relative)
    return f"{verb} {relative}"
