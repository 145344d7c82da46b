"""The command line as a whole: its flags, its help, and what its error boundary makes of errors."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from llmft_cli import __version__
from llmft_cli.base.errors import DataError, LlmftError
from llmft_cli.cli import app, flags
from llmft_cli.cli.run_argument import run_to_prepare
from llmft_cli.settings.config import FIELDS, Config, flag_of

COMMANDS = ("gpu-check", "prepare", "train", "merge", "eval", "chat")
GENERAL = {"--json", "--quiet", "-q", "--debug", "--help", "--help-all"}
OWN = {
    "gpu-check": {"--require-gpu", "--wait", "--min-free", "--max-load", "--gpus", "--config", "--vram", "--run", "--measure"},
    "prepare": {"--run", "--preview", "--overwrite", "--config"},
    "train": {
        "--data",
        "--resume",
        "--continue",
        "--from-adapter",
        "--require-improvement",
        "--profile",
        "--search",
        "--search-metric",
        "--timings",
        "--overwrite",
        "--allow-stale",
        "--config",
    },
    "merge": {"--overwrite", "--allow-stale", "--config"},
    "eval": {"--prompts", "--name", "--overwrite", "--allow-stale", "--config"},
    "chat": {"--prompt", "--system", "--compare", "--allow-stale", "--config"},
}
Captured = pytest.CaptureFixture[str]


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["llmft", *arguments])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert isinstance(left.value.code, int)
    return left.value.code


def settings_flags_of(command: str) -> set[str]:
    names: set[str] = set()
    for name, item in FIELDS.items():
        if command in item.setting.commands:
            names.add(flag_of(name))
            if item.type is bool and item.default is not False:
                names.add(f"--no-{flag_of(name)[2:]}")
    return names


def test_there_are_the_six_commands() -> None:
    assert tuple(typer.main.get_command(app.app).commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_flags_are_its_own_and_those_of_the_config(command: str) -> None:
    group: Any = typer.main.get_command(app.app)
    context = group.make_context("llmft", ["--help"], resilient_parsing=True)
    parameters = group.commands[command].get_params(context)
    options = {name for item in parameters if item.param_type_name == "option" for name in (*item.opts, *item.secondary_opts)}
    # A setting that is no longer in FIELDS, or a new one, shows here: the expectation is made from FIELDS alone.
    assert options == GENERAL | OWN[command] | settings_flags_of(command)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert run("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr() == (f"llmft {__version__}\n", "")


def test_without_arguments_there_is_help_and_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert run(monkeypatch=monkeypatch) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: llmft [OPTIONS] COMMAND [ARGS]...")
    assert shown.err == ""


# -- where models are loaded

LOADING = ["train x", "merge x", "eval x", "chat x --prompt hi", "gpu-check --model x --measure"]


@pytest.mark.parametrize("line", LOADING)
def test_commands_that_load_a_model_run_in_one_process(line: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*line.split(), "--json", monkeypatch=monkeypatch) == 2
    message = f"WORLD_SIZE is 2: `llmft {line.split()[0]}` supports one process only"
    hint = f"start it without torchrun: `llmft {line.split()[0]} ...`; if the system sets WORLD_SIZE, unset it"
    assert json.loads(capsys.readouterr().out)["error"] == {"kind": "usage", "message": message, "hint": hint}


@pytest.mark.parametrize("line", LOADING)
def test_commands_that_load_a_model_need_linux(line: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr("llmft_cli.base.preconditions.sys", SimpleNamespace(platform="darwin"))
    assert run(*line.split(), "--json", monkeypatch=monkeypatch) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "environment"
    assert error["message"].startswith(f"`llmft {line.split()[0]}` needs Linux: macOS has no CUDA")


def test_other_commands_run_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("llmft_cli.base.preconditions.sys", SimpleNamespace(platform="darwin"))
    command_that(raising(DataError("looked at the machine")), monkeypatch)
    assert run("gpu-check", monkeypatch=monkeypatch) == 4
    assert "looked at the machine" in capsys.readouterr().err
    assert run("prepare", "none.jsonl", monkeypatch=monkeypatch) == 4
    assert "none.jsonl does not exist" in capsys.readouterr().err


# -- the error boundary


def command_that(action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `llmft gpu-check` do something else."""

    def check(*arguments: Any) -> None:
        action()

    monkeypatch.setattr("llmft_cli.gpu.check.check", check)


def raising(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


def wrapped_interrupt() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as cause:
        raise ImportError("initialization failed") from cause


@pytest.fixture(autouse=True)
def keep_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boundary lets a second Ctrl-C end the process, which must not be that of the tests."""
    monkeypatch.setattr(app.signal, "signal", lambda number, handler: None)


@pytest.mark.parametrize(
    ("action", "code", "kind", "message", "hint"),
    [
        (raising(DataError("no rows", "add some")), 4, "data", "no rows", "add some"),
        (raising(KeyboardInterrupt()), 130, "interrupted", "interrupted", "finished work is saved"),
        (wrapped_interrupt, 130, "interrupted", "interrupted", "finished work is saved"),
        (
            raising(OSError(28, "No space left on device", "/x")),
            3,
            "environment",
            "no space left on the disk at /x",
            "free some space, or keep the run on another disk",
        ),
        (
            raising(MemoryError()),
            5,
            "memory",
            "out of memory",
            "use a smaller --rows-per-step or --max-seq-length, or --gradient-checkpointing",
        ),
        (
            raising(KeyError("oops")),
            1,
            "bug",
            "KeyError: 'oops'",
            "this is a bug in llmft; please report it with the lines above",
        ),
    ],
)
def test_whatever_ends_a_command_is_told_in_one_way(
    action: Any, code: int, kind: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    command_that(action, monkeypatch)
    assert run("gpu-check", "--json", monkeypatch=monkeypatch) == code
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"ok": False, "error": {"kind": kind, "message": message, "hint": hint}}
    assert ("Traceback" in shown.err) is (kind == "bug")

    assert run("gpu-check", monkeypatch=monkeypatch) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-2:] == [f"error: {message}", f"hint: {hint}"]
    assert len(shown.err.splitlines()) == 2 or kind == "bug"


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_where_an_error_came_from(how: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    command_that(raising(LlmftError("x")), monkeypatch)
    if how == "environment":
        monkeypatch.setenv("LLMFT_DEBUG", "1")
    run("gpu-check", *(["--debug"] if how == "flag" else []), monkeypatch=monkeypatch)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


TEXT_OPTIONS = [
    ("chat x --prompt", "--prompt"),
    ("chat x --prompt hi --system", "--system"),
    ("eval x --name", "--name"),
    ("gpu-check --wait", "--wait"),
    ("gpu-check --vram", "--vram"),
    ("prepare rows.jsonl --columns", "--columns"),
    ("prepare rows.jsonl --model", "--model"),
    ("prepare rows.jsonl --weights", "--weights"),
    ("train x --wandb-project", "--wandb-project"),
    ("train x --target-modules", "--target-modules"),
]


@pytest.mark.parametrize(("line", "option"), TEXT_OPTIONS)
def test_text_that_is_not_utf8_is_a_usage_error(
    line: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """`--prompt $'caf\\xe9'` ended in "a bug of llmft", after the model was loaded."""
    assert run(*line.split(), os.fsdecode(b"caf\xe9"), "--json", monkeypatch=monkeypatch) == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert message.startswith(option)
    assert "is not UTF-8 (byte 0xe9 in column 4)" in message
    assert "caf\\udce9" in message.encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize("line", ["train", "merge", "eval", "chat --prompt hi", "gpu-check --run", "prepare rows.jsonl --run"])
def test_a_run_directory_that_is_not_utf8_is_a_usage_error(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("llmft_cli.gpu.check.check", lambda *arguments: SimpleNamespace(gpus=[], probes=[]))
    monkeypatch.setattr("llmft_cli.cli.gpu_check.asdict", lambda report: {}, raising=False)
    monkeypatch.setattr("llmft_cli.cli.views.gpu_check.report_sections", lambda report: [])
    monkeypatch.setattr("llmft_cli.fit.target_gpu.freest_gpu", lambda *arguments: None)
    assert run(*line.split(), os.fsdecode(b"run\xe9"), monkeypatch=monkeypatch) == 2
    assert "the run directory run\\udce9 is not UTF-8 (byte 0xe9 in column 4)" in capsys.readouterr().err


def test_settings_that_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text('columns: "prompt=\\ud800"\n')
    assert run("prepare", "rows.jsonl", "--config", str(file), monkeypatch=monkeypatch) == 2
    assert f"columns in {file}: 'prompt=\\ud800' has a lone surrogate (\\ud800 in column 8)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["foo"], "No such command 'foo'.", "see llmft --help"),
        (["mrege"], "No such command 'mrege'. Did you mean 'merge'?", "see llmft --help"),
        (["train", "--batch-siz", "2"], "No such option: --batch-siz", "see llmft train --help-all"),
        (["train", "--batch-size"], "Option '--batch-size' requires an argument.", "see --help-all"),
        (["train", "a", "b"], "Got unexpected extra argument", "see llmft train --help"),
        (["prepare"], "Missing argument 'DATA'.", "see llmft prepare --help"),
        (["train", "--json=3"], "Option '--json' does not take a value.", "see --help-all"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, hint: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert run(*arguments, monkeypatch=monkeypatch) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second == f"hint: {hint}"


@pytest.mark.parametrize("command", ["prepare", "train", "merge", "eval", "chat"])
def test_a_wrong_setting_is_told_before_anything_is_looked_for(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "settings.yaml"
    file.write_text("learning_rate: fast\n")
    arguments = [command, *(["rows.jsonl"] if command == "prepare" else []), "--config", str(file)]
    assert run(*arguments, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == f"error: learning_rate in {file}: 'fast' is not a number\n"


def test_flags_and_file_reach_the_config(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("lora-r: 8\nbatch_size: 2\n")
    given = flags.Given({"lora_r": "4", "packing": False, "seed": None}, file, flags.make_console(False, True))
    assert given.config({"seed": 3}) == Config(lora_r=4, batch_size=2, packing=False, seed=3)


def test_a_new_run_is_named_after_its_data() -> None:
    assert re.fullmatch(r"runs/chat-\d{8}-\d{6}", str(run_to_prepare(None, ["sample_data/chat.jsonl", "b.csv"]).path))
    assert re.fullmatch(r"runs/data-\d{8}-\d{6}", str(run_to_prepare(None, ["."]).path))
    assert re.fullmatch(r"runs/caf-\d{8}-\d{6}", str(run_to_prepare(None, ["caf\udce9.csv"]).path))
    assert run_to_prepare(Path("runs/x"), ["."]).path == Path("runs/x")
