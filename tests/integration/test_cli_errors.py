"""The installed command when things are not as they should be: exit code, one or two lines, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import stage

from .conftest import LLMFT, files_in

UNREACHABLE = "the model nobody/nothing is not on this machine and the Hub cannot be reached"
BUILTIN = "or use the built-in model (prepare, train, gpu-check: --model smollm2-135m)"
CONNECT = f"connect to the Hub, give a local directory, {BUILTIN}"
READABLE = "supported types: .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .txt, .md, each also compressed (.gz, .zst)"
NO_RUN = "name one, or create one with: llmft prepare DATA"

UNTRAINED = (2, "stage", "prepared: the stage train has not been run", "run first: llmft train prepared")

# arguments, exit code, kind, message, hint
CASES = {
    "missing data file": ("prepare none.jsonl", 4, "data", "none.jsonl does not exist", ""),
    "empty file": ("prepare empty.jsonl", 4, "data", "empty.jsonl is empty", ""),
    "directory without data": ("prepare folder", 4, "data", "folder contains no data files", READABLE),
    "binary file": (
        "prepare binary.jsonl",
        4,
        "data",
        "binary.jsonl is a binary file, not text (NUL byte at offset 3)",
        "",
    ),
    "unknown type": ("prepare picture.png", 4, "data", "picture.png has an unknown file type", READABLE),
    "unknown command": ("foo", 2, "usage", "No such command 'foo'.", "see llmft --help"),
    "unknown flag": (
        "train --qqq",
        2,
        "usage",
        "No such option: --qqq",
        "see llmft train --help-all",
    ),
    "flag without its value": ("train --seed", 2, "usage", "Option '--seed' requires an argument.", "see --help-all"),
    "missing argument": ("prepare", 2, "usage", "Missing argument 'DATA'.", "see llmft prepare --help"),
    "bad flag value": ("train --batch-size two", 2, "config", "--batch-size: 'two' is not a whole number", ""),
    "flag out of range": ("train --learning-rate 3", 2, "config", "--learning-rate: 3.0 must be below 1", ""),
    "unknown config key": (
        "train --config bad.yaml",
        2,
        "config",
        "unknown setting learning_rat in bad.yaml",
        "did you mean learning_rate?",
    ),
    "missing config file": (
        "train --config none.yaml",
        2,
        "config",
        "cannot read the config file none.yaml: No such file or directory",
        "",
    ),
    "no runs at all": ("train", 2, "stage", "there is no run under runs/", NO_RUN),
    "not a run": (
        "train folder",
        2,
        "stage",
        "folder is not a run (it has no run.json)",
        "create one with: llmft prepare DATA --run RUN",
    ),
    "run without prepare": (
        "train prepared-not",
        2,
        "stage",
        "prepared-not: the stage prepare has not been run",
        "run first: llmft prepare DATA --run prepared-not",
    ),
    "chat untrained": ("chat prepared --prompt hi", *UNTRAINED),
    "merge untrained": ("merge prepared", *UNTRAINED),
    "eval untrained": ("eval prepared", *UNTRAINED),
    "run that is a file": (
        "prepare rows.jsonl --run empty.jsonl",
        2,
        "stage",
        "empty.jsonl cannot be a run directory: empty.jsonl is a file",
        "choose another directory",
    ),
    "no network": ("prepare rows.jsonl --model nobody/nothing", 3, "model", UNREACHABLE, CONNECT),
    "no such model": (
        "prepare rows.jsonl --model ./none",
        3,
        "model",
        "there is no model at ./none",
        f"give a Hub id or a local directory, {BUILTIN}",
    ),
    "no model directory": (
        "prepare rows.jsonl --model folder",
        3,
        "model",
        "folder is not a model directory (it has no config.json)",
        "",
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good and bad files, in a home of its own."""
    monkeypatch.delenv("LLMFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    (work / "folder").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    write_rows(work / "rows.jsonl", 40)
    (work / "empty.jsonl").write_text("\n")
    (work / "binary.jsonl").write_bytes(b"abc\0def")
    (work / "picture.png").write_bytes(b"png")
    (work / "bad.yaml").write_text("learning_rat: 0.1\n")
    with stage(RunDir(work / "prepared"), "prepare", {}, {}, overwrite=False):
        pass
    (work / "prepared-not").mkdir()
    (work / "prepared-not" / "run.json").write_text('{"schema_version": 1, "stages": {}}')
    return work


def write_rows(file: Path, count: int) -> None:
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i}?"},
                {"role": "assistant", "content": f"It is {2 * i}."},
            ]
        }
        for i in range(count)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def llmft(folder: Path, *arguments: str, online: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not (online and name == "HF_HUB_OFFLINE")}
    return subprocess.run([str(LLMFT), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def check(folder: Path, arguments: list[str], code: int, kind: str, message: str, hint: str) -> None:
    """Run a command that must fail, for people and for programs."""
    before = files_in(folder.parent)
    shown = llmft(folder, *arguments)
    lines = [f"error: {message}", *([f"hint: {hint}"] if hint else [])]
    assert (shown.returncode, shown.stdout, shown.stderr.splitlines()) == (code, "", lines)
    shown = llmft(folder, arguments[0], "--json", *arguments[1:])
    expected = {"ok": False, "error": {"kind": kind, "message": message, "hint": hint}}
    assert len(shown.stdout.splitlines()) == 1
    assert (shown.returncode, json.loads(shown.stdout), shown.stderr) == (code, expected, "")
    assert files_in(folder.parent) == before


@pytest.mark.parametrize("name", CASES)
def test_what_goes_wrong_is_told_and_leaves_nothing(name: str, folder: Path) -> None:
    line, code, kind, message, hint = CASES[name]
    check(folder, line.split(), code, kind, message, hint)


@pytest.mark.parametrize("arguments", ["train prepared", "merge prepared", "eval prepared", "chat prepared --prompt hi"])
def test_one_of_several_processes_is_refused_before_anything_is_loaded(
    arguments: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traps = folder.parent / "traps"
    traps.mkdir()
    for library in ("torch", "transformers"):
        (traps / f"{library}.py").write_text("raise AssertionError('it is loaded')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(traps), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command, *others = arguments.split()
    message = f"WORLD_SIZE is 2: `llmft {command}` supports one process only"
    hint = f"start it without torchrun: `llmft {command} ...`; if the system sets WORLD_SIZE, unset it"
    check(folder, [command, *others], 2, "usage", message, hint)


def test_chat_as_json_needs_a_prompt(folder: Path) -> None:
    shown = llmft(folder, "chat", "prepared", "--json")
    error = {"kind": "usage", "message": "chat --json needs a question", "hint": "give it with --prompt"}
    assert (shown.returncode, json.loads(shown.stdout), shown.stderr) == (2, {"ok": False, "error": error}, "")


def test_no_network_is_told_soon_even_where_nobody_said_offline(folder: Path) -> None:
    started = time.monotonic()
    shown = llmft(folder, "prepare", "rows.jsonl", "--model", "nobody/nothing", online=True)
    assert (shown.returncode, shown.stderr.splitlines()) == (3, [f"error: {UNREACHABLE}", f"hint: {CONNECT}"])
    assert time.monotonic() - started < 40  # the libraries' own look-ups take 46 s, however fast the machine is


def test_without_arguments_there_is_help(folder: Path) -> None:
    shown = llmft(folder)
    assert (shown.returncode, shown.stderr) == (2, "")
    assert shown.stdout.startswith("Usage: llmft ")


def test_names_that_are_not_utf8_are_shown(folder: Path) -> None:
    name = os.fsdecode(b"rows-\xff-\xc3\xa9.jsonl")
    shown = llmft(folder, "prepare", name, "--json")
    assert json.loads(shown.stdout)["error"]["message"] == "rows-\\udcff-\u00e9.jsonl does not exist"
    shown = llmft(folder, "prepare", name)
    assert shown.stderr == "error: rows-\\udcff-\u00e9.jsonl does not exist\n"


# -- disks


@pytest.fixture
def read_only(tmp_path: Path, mounted: Callable[[str], Path]) -> Iterator[Path]:
    """A directory that cannot be written to: by its mode, which root ignores, or as a mount."""
    if os.geteuid() == 0:
        target = mounted("1m")
        subprocess.run(["mount", "-o", "remount,ro", str(target)], check=True)
        yield target
        return
    target = tmp_path / "disk"
    target.mkdir()
    target.chmod(0o555)
    yield target
    target.chmod(0o755)


@pytest.fixture
def small_disk(mounted: Callable[[str], Path]) -> Path:
    return mounted("64k")


def test_a_read_only_place_for_the_run(folder: Path, read_only: Path) -> None:
    check(
        folder,
        ["prepare", "rows.jsonl", "--run", str(read_only / "runs" / "x")],
        3,
        "environment",
        f"permission denied: {read_only}",
        "fix its permissions, or keep the run elsewhere",
    )


@pytest.mark.parametrize("free", [0, 16384], ids=["no room", "room for some"])
def test_a_full_disk(free: int, folder: Path, small_disk: Path, tiny_model_dir: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (65536 - free))
    shown = llmft(
        folder, "prepare", "rows.jsonl", "--model", str(tiny_model_dir), "--run", str(small_disk / "runs" / "x"), "--json"
    )
    error = json.loads(shown.stdout)["error"]
    assert (shown.returncode, error["kind"], shown.stderr) == (3, "environment", "")
    assert error["message"].startswith("no space left on the disk")
    assert error["hint"] == "free some space, or keep the run on another disk"
    assert files_in(small_disk) == {"filler"}


def test_a_full_disk_leaves_the_earlier_result_usable(folder: Path, small_disk: Path, tiny_model_dir: Path) -> None:
    run = RunDir(small_disk / "x")
    with stage(run, "prepare", {}, {}, overwrite=False) as record:
        run.data.mkdir()
        (run.data / "rows").write_text("earlier")
        record.outputs.append("data")
    before = run.entry("prepare")
    (small_disk / "filler").write_bytes(b"x" * 32768)
    arguments = ["prepare", "rows.jsonl", "--model", str(tiny_model_dir), "--run", str(run.path), "--overwrite"]
    shown = llmft(folder, *arguments)
    assert (shown.returncode, len(shown.stderr.splitlines())) == (3, 2)
    assert run.require("prepare") == before


# -- Ctrl-C


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([str(LLMFT), *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def opened_files(process: Path) -> set[str]:
    """What a process under /proc holds open; a file may be closed between being listed and being looked at."""
    names = set()
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(str(link.readlink()))
    return names


def wait_until(process: subprocess.Popen[str], library: str, file: Path | None = None) -> None:
    """Until the process has loaded a compiled library, and holds a file open."""
    here = Path(f"/proc/{process.pid}")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if library in (here / "maps").read_text() and (file is None or str(file) in opened_files(here)):
            return
        time.sleep(0.001)
    raise AssertionError(f"{library} was never loaded")


def test_ctrl_c_while_rows_are_read(folder: Path, tiny_model_dir: Path) -> None:
    write_rows(folder / "rows.jsonl", 100_000)
    before = files_in(folder.parent)
    process = started(folder, "prepare", "rows.jsonl", "--model", str(tiny_model_dir), "--run", "new/run", "--json")
    wait_until(process, "tokenizers", folder / "rows.jsonl")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    error = {"kind": "interrupted", "message": "interrupted", "hint": "finished work is saved"}
    assert (process.returncode, json.loads(out), err) == (130, {"ok": False, "error": error}, "")
    assert files_in(folder.parent) == before


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("pydantic_core", "gpu-check"),  # Typer reads the command line
        ("libtorch_cpu", "gpu-check"),
        ("libarrow", "prepare rows.jsonl --run x --model {model}"),
    ],
)
def test_ctrl_c_during_imports_shows_no_traceback(library: str, arguments: str, folder: Path, tiny_model_dir: Path) -> None:
    process = started(folder, *arguments.format(model=tiny_model_dir).split())
    wait_until(process, library)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.endswith("error: interrupted\nhint: finished work is saved\n")
    assert "x" not in files_in(folder)


def test_ctrl_c_right_after_the_start_ends_without_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no error boundary yet while Typer is imported."""
    (folder / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    shown = llmft(folder, "gpu-check")
    assert (shown.returncode, shown.stdout, shown.stderr) == (130, "", "")
