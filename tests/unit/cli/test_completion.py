"""Shell completion: the scripts for bash, zsh and fish, and what they are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmft_cli.cli import app
from llmft_cli.models import builtin
from llmft_cli.settings.config import FIELDS

COMMANDS = ["gpu-check", "prepare", "train", "merge", "eval", "chat"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs and a folder that is none, in a home of its own."""
    for name in ("chat", "code", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("chat", "code"):
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(monkeypatch: pytest.MonkeyPatch, capsys: Captured, **environment: str) -> str:
    """What `llmft` prints to a shell that asks by these variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["llmft"])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("llmft ", COMMANDS),
        ("llmft tr", ["train"]),
        ("llmft --help-a", ["--help-all"]),
        ("llmft --version tr", ["train"]),
        ("llmft --help-all tr", ["train"]),
        ("llmft train --resu", ["--resume"]),
        ("llmft train --help-all --resu", ["--resume"]),
        ("llmft train --no-p", ["--no-packing"]),
        ("llmft train --quantization ", ["nf4", "fp4", "int8", "none"]),
        ("llmft train --report-to w", ["wandb"]),
        ("llmft train --model sm", ["smollm2-135m"]),
        ("llmft train --plan f", ["fast", "frugal"]),
        ("llmft train ", ["runs/chat", "runs/code"]),
        ("llmft eval runs/co", ["runs/code"]),
        ("llmft gpu-check --run runs/ch", ["runs/chat"]),
        ("llmft train elsewhere/", []),  # the shell completes paths itself
        ("llmft train --data ro", []),
    ],
)
def test_bash_is_told(
    line: str, completions: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    words = line.split(" ")
    out = printed(monkeypatch, capsys, _LLMFT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert out.split() == completions


def test_zsh_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    asked = {"_LLMFT_COMPLETE": "complete_zsh"}
    out = printed(monkeypatch, capsys, **asked, _TYPER_COMPLETE_ARGS="llmft train --quantization n")
    assert out.split() == ["_arguments", "'*:", ':(("nf4"', '"none"))\'']
    assert '"train":"Train a LoRA' in printed(monkeypatch, capsys, **asked, _TYPER_COMPLETE_ARGS="llmft ")
    assert printed(monkeypatch, capsys, **asked, _TYPER_COMPLETE_ARGS="llmft train elsewhere/") == "_files\n"


def test_fish_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    asked = {"_LLMFT_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    out = printed(monkeypatch, capsys, **asked, _TYPER_COMPLETE_ARGS="llmft train --max-v")
    assert out.startswith("--max-vram\tGPU memory limit")
    assert printed(monkeypatch, capsys, **asked, _TYPER_COMPLETE_ARGS="llmft train ").split() == ["runs/chat", "runs/code"]


@pytest.mark.parametrize(
    ("shell", "registration"),
    [
        ("bash", "complete -o default -F _llmft_completion llmft"),
        ("zsh", "compdef _llmft_completion llmft"),
        ("fish", "complete --command llmft"),
    ],
)
def test_scripts(shell: str, registration: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    script = printed(monkeypatch, capsys, _LLMFT_COMPLETE=f"source_{shell}")
    assert registration in script
    assert f"_LLMFT_COMPLETE=complete_{shell}" in script


@pytest.mark.parametrize(
    ("shell", "files"),
    [
        ("bash", {".bashrc", ".bash_completions/llmft.sh"}),
        ("zsh", {".zshrc", ".zfunc/_llmft"}),
        ("fish", {".config/fish/completions/llmft.fish"}),
    ],
)
def test_installing_writes_to_the_home_alone(
    shell: str, files: set[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    before = {file for file in folder.rglob("*") if file.is_file()}
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    monkeypatch.setattr(sys, "argv", ["llmft", "--install-completion"])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"{shell} completion installed in {folder / 'home'}")
    made = {file for file in folder.rglob("*") if file.is_file()} - before
    assert {str(file.relative_to(folder / "home")) for file in made} == files


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_an_unknown_shell_is_a_usage_error(
    option: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("tcsh", "/bin/tcsh"))
    monkeypatch.setattr(sys, "argv", ["llmft", option])
    monkeypatch.setattr(app.signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 2
    assert "_LLMFT_COMPLETE=source_bash llmft" in capsys.readouterr().err
    assert list((folder / "home").iterdir()) == []


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_with_the_installed_script(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    (folder / "llmft.sh").write_text(printed(monkeypatch, capsys, _LLMFT_COMPLETE="source_bash"))
    program = """
    source ./llmft.sh
    complete -p llmft
    COMP_WORDS=(llmft train --quantization f); COMP_CWORD=3
    _llmft_completion "$LLMFT"
    echo "${COMPREPLY[@]}"
    """
    environment = {name: value for name, value in os.environ.items() if name != "_LLMFT_COMPLETE"}
    environment["LLMFT"] = str(Path(sys.executable).with_name("llmft"))
    done = subprocess.run(["bash", "--norc", "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["complete -o default -F _llmft_completion llmft", "fp4"]


def test_what_is_suggested_exists() -> None:
    assert builtin.NAME in FIELDS["model"].setting.suggestions


def test_every_kind_of_plan_is_suggested() -> None:
    pytest.importorskip("torch")
    from llmft_cli.training.plan import PLAN_KINDS
    from llmft_cli.training.planning.decide import AS_GIVEN

    assert FIELDS["plan"].setting.suggestions == (*PLAN_KINDS, AS_GIVEN)
