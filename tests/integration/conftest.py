"""The installed `llmft`, run as users run it, and one run trained for real on the built-in model.

The built-in model is downloaded and converted once per machine, into the user's cache.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from llmft_cli.models.builtin import cache_dir

LLMFT = Path(sys.executable).with_name("llmft")
SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
# Taken before the tests get a home of their own.
CACHE = cache_dir()
MODEL = "smollm2-135m"
ROWS, EPOCHS = 30, 7

# Steps of a few milliseconds each; dropout, so that a resumed training needs the random numbers that were next.
TRAIN_FLAGS = ("--batch-size", 1, "--gradient-accumulation-steps", 2, "--max-steps", 40, "--eval-steps", 10)
TRAIN_FLAGS += ("--learning-rate", 3e-3, "--lora-dropout", 0.1, "--no-packing")
FORKED = Path(__file__).with_name("forked.py")
# What `llmft` spends most of its seconds on before it works.
SLOW_IMPORTS = [
    "llmft_cli.training.loop.trainer",
    "llmft_cli.training.loop.callbacks",
    "llmft_cli.evaluation.evaluate",
    "llmft_cli.cli.console",
    "transformers.models.llama.modeling_llama",
    "peft",
    "bitsandbytes",
    "datasets",
    "matplotlib.figure",
]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def llmft() -> Run:
    """The installed command, run in `folder` with a home of its own and no terminal."""

    def run(*arguments: object, folder: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        home = folder / "home"
        home.mkdir(exist_ok=True)
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LLMFT_CACHE": str(CACHE),
            "COLUMNS": "80",
            "LANG": "C.UTF-8",
        }
        command = [str(LLMFT), *map(str, arguments)]
        return subprocess.run(
            command, cwd=folder, env=variables | environment, input=stdin, capture_output=True, text=True, timeout=3000
        )

    return run


@pytest.fixture(scope="session")
def llmft_json(llmft: Run) -> Callable[..., dict]:
    """The object that a command prints with --json, having succeeded and printed nothing else on stdout."""

    def run(*arguments: object, **options: object) -> dict:
        done = llmft(*arguments, "--json", **options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("\n") == 1
        result = json.loads(done.stdout)
        assert result["ok"] is True
        assert result["command"] == arguments[0]
        return result

    return run


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `chat.jsonl`, the first single-turn rows of the sample data, and a run `runs/brindle` trained on them."""
    folder = tmp_path_factory.mktemp("workspace")
    rows = [line for line in (SAMPLE_DATA / "chat.jsonl").read_text().splitlines() if len(json.loads(line)["messages"]) == 2]
    (folder / "chat.jsonl").write_text("\n".join(rows[:ROWS]) + "\n")
    return folder


@pytest.fixture(scope="session")
def prepared(llmft_json: Callable[..., dict], workspace: Path) -> dict:
    """What `prepare --json` said of `runs/brindle`."""
    flags = ("--run", "runs/brindle", "--model", MODEL, "--max-seq-length", 256, "--val-size", 4)
    return llmft_json("prepare", "chat.jsonl", *flags, folder=workspace)


@pytest.fixture(scope="session")
def untrained(workspace: Path, prepared: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/brindle` as `prepare` left it, to be copied."""
    return Path(shutil.copytree(workspace / "runs/brindle", tmp_path_factory.mktemp("untrained") / "run"))


@pytest.fixture(scope="session")
def trained(llmft_json: Callable[..., dict], workspace: Path, untrained: Path) -> dict:
    """What `train --json` said of `runs/brindle`: a few minutes' worth of NF4 training in one."""
    flags = ("--batch-size", 1, "--gradient-accumulation-steps", 1, "--learning-rate", 3e-3, "--num-epochs", EPOCHS)
    return llmft_json("train", "runs/brindle", *flags, folder=workspace)


@pytest.fixture(scope="session")
def merged(llmft_json: Callable[..., dict], workspace: Path, trained: dict) -> dict:
    """What `merge --json` said of `runs/brindle`."""
    return llmft_json("merge", "runs/brindle", folder=workspace)


@pytest.fixture(scope="session")
def builtin_model_dir(trained: dict) -> Path:
    """The built-in model's plain directory, which training has put into the cache."""
    return next(path for path in CACHE.glob("smollm2-135m-*") if path.is_dir())


def files_in(folder: Path) -> set[str]:
    """Relative paths of everything in a folder, hidden files included."""
    return {str(item.relative_to(folder)) for item in folder.rglob("*")}


# -- a tiny model, and commands that start at once


class Started:
    """A command under way, to be watched and sent signals."""

    def __init__(self, process: BaseProcess, out: Path, err: Path) -> None:
        self._process = process
        self._out = out
        self._err = err

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert self._process.is_alive(), f"it has ended: {self.said}"
            assert time.monotonic() < deadline, f"five minutes have passed: {self.said}"
            time.sleep(0.001)

    @property
    def said(self) -> str:
        """What it has written to stderr, and then to stdout."""
        return "".join(file.read_text(errors="replace") for file in (self._err, self._out) if file.exists())

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.said)

    def wait_for_threads(self) -> None:
        """Until it computes; it is forked with a single thread."""
        self.wait_until(lambda: len(list(Path(f"/proc/{self._process.pid}/task").glob("*"))) > 1)

    def wait_for_halt(self) -> None:
        """Until it has stopped itself, where it was told to with `halt_at`."""
        stat = Path(f"/proc/{self._process.pid}/stat")
        self.wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal, which is the first thing that a halted process meets."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        os.kill(self._process.pid, signal.SIGCONT)

    def finish(self) -> subprocess.CompletedProcess[str]:
        self._process.join(600)
        code = self._process.exitcode
        assert code is not None, "still running after ten minutes"
        return subprocess.CompletedProcess([], code, self._out.read_text(), self._err.read_text())


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Start a command line of `llmft` in `folder`, as a process of its own and without a terminal.

    It is forked from a process that has the libraries loaded, which spares 6 seconds of imports each time.
    """
    scratch = tmp_path_factory.mktemp("commands")
    numbers = itertools.count()
    processes: list[BaseProcess] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    with pytest.MonkeyPatch.context() as patch:
        # These are read when the libraries are imported.
        patch.setenv("HOME", str(scratch))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Threads that wait for each other crawl where other processes keep the cores busy.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TQDM_DISABLE", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")
        forkserver.ensure_running()

    def run(
        *arguments: object,
        folder: Path,
        stdin: str = "",
        stdin_from: str = "",
        halt_at: str = "",
        unprivileged: bool = False,
        **environment: str,
    ) -> Started:
        place = scratch / str(next(numbers))
        place.mkdir()
        (place / "in").write_text(stdin)
        streams = [stdin_from or str(place / "in"), str(place / "out"), str(place / "err")]
        variables = {"PATH": os.environ["PATH"], "HOME": str(place), "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1"}
        given = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "environment": variables | environment,
            "streams": streams,
            "halt_at": halt_at,
            "unprivileged": unprivileged,
        }
        process = context.Process(target=runpy.run_path, args=(str(FORKED), given))
        process.start()
        processes.append(process)
        return Started(process, Path(streams[1]), Path(streams[2]))

    yield run
    for process in processes:
        process.kill()


@pytest.fixture(scope="session")
def run(start: Callable[..., Started]) -> Run:
    """Run a command line of `llmft` to its end, as `start` starts it."""
    return lambda *arguments, **options: start(*arguments, **options).finish()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rows.jsonl`, 40 conversations."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = ((f"What is {number} and {number}?", f"It is {2 * number}.") for number in range(40))
    conversations = ([{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in rows)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return folder


@pytest.fixture(scope="session")
def prepared_run(run: Run, tiny_data: Path, tiny_model_dir: Path) -> Path:
    """A run on the tiny model that is prepared, to be copied."""
    flags = ("--run", "prepared", "--model", tiny_model_dir, "--max-seq-length", 64, "--val-size", 4)
    done = run("prepare", "rows.jsonl", *flags, folder=tiny_data)
    assert done.returncode == 0, done.stderr
    return tiny_data / "prepared"


@pytest.fixture(scope="session")
def trained_run(run: Run, prepared_run: Path) -> Path:
    """A run on the tiny model that is trained with `TRAIN_FLAGS`, to be copied."""
    target = prepared_run.with_name("trained")
    shutil.copytree(prepared_run, target)
    done = run("train", "trained", *TRAIN_FLAGS, folder=target.parent)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def prepared_copy(prepared_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_run, tmp_path / "run"))


@pytest.fixture
def trained_copy(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


# -- disks


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount an empty disk of a size (`64k`, `2m`) in memory, where that is allowed."""
    target = tmp_path / "disk"

    def mount(size: str) -> Path:
        target.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        return target

    yield mount
    if target.is_mount():
        subprocess.run(["umount", str(target)], check=True)
