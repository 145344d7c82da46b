"""The arrows between the modules, and that help costs no heavy import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmft_cli

PACKAGE = Path(llmft_cli.__file__).parent
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): ast.parse(file.read_text(encoding="utf-8"))
    for file in sorted(PACKAGE.rglob("*.py"))
}
SHELL = {"gpu_questions", "__main__", "cli", "flags", "console", *(name for name in MODULES if name.startswith("views."))}
BOTTOM = {"config", "setting", "settings", "errors", "files", "run_dir", "progress", "libraries", "network", "quantities"}
BOTTOM |= {"preconditions"}
HEAVY = {"torch", "transformers", "datasets", "peft", "bitsandbytes", "wandb", "matplotlib", "scipy", "pyarrow"}
COMMANDS = ("gpu-check", "prepare", "train", "merge", "eval", "chat")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers_of(package: str) -> set[str]:
    return {
        name
        for name, tree in MODULES.items()
        if any(found == package or found.startswith(f"{package}.") for found in imported(tree))
    }


def own_imports(name: str) -> set[str]:
    """Modules of ours that a module imports."""
    found = {item.removeprefix("llmft_cli.") for item in imported(MODULES[name]) if item.startswith("llmft_cli.")}
    return {module for module in MODULES for item in found if item == module or item.startswith(f"{module}.")}


def test_the_walk_sees_imports() -> None:
    assert {"config", "run_dir", "models"} <= own_imports("training.train")
    assert {"errors", "flags"} <= own_imports("cli")


def test_nothing_imports_the_command_line() -> None:
    assert importers_of("llmft_cli.cli") == {"__main__"}
    assert importers_of("llmft_cli.flags") == {"cli"}


def test_only_the_console_knows_rich_and_only_the_command_line_knows_typer() -> None:
    assert importers_of("rich") == {"console"}
    assert importers_of("typer") == {"cli", "flags"}


def test_library_code_does_not_know_the_shell() -> None:
    for name in set(MODULES) - SHELL:
        assert not own_imports(name) & SHELL, name


def test_the_bottom_knows_nothing_above_it() -> None:
    for name in BOTTOM:
        assert own_imports(name) <= BOTTOM, name


@pytest.mark.parametrize(("lower", "upper"), [("models", ("data", "training", "evaluation", "merging", "chat"))])
def test_models_do_not_know_the_commands(lower: str, upper: tuple[str, ...]) -> None:
    assert not [name for name in own_imports(lower) if name.startswith(upper)]


def test_the_packages_stand_on_each_other_one_way() -> None:
    order = ["data", "training", "evaluation"]
    for name in MODULES:
        package = name.partition(".")[0]
        if package in order:
            above = order[order.index(package) + 1 :]
            assert not [other for other in own_imports(name) if other.partition(".")[0] in above], name


def test_nothing_but_the_console_prints() -> None:
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name} line {node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and name not in SHELL:
                assert not (isinstance(node.value, ast.Name) and node.value.id == "sys"), f"{name} line {node.lineno}"


def test_the_package_itself_imports_nothing() -> None:
    assert list(imported(MODULES["__init__"])) == []


# What Windows lacks. Only these modules, of commands that need Linux, may import or use it.
UNIX_MODULES = {"fcntl", "resource", "termios", "tty", "pwd", "grp", "pty", "syslog"}
UNIX_FUNCTIONS = {"pread", "pwrite", "preadv", "pwritev", "fork", "forkpty", "getuid", "geteuid", "getgid", "sysconf", "mkfifo"}
UNIX_FUNCTIONS |= {"getloadavg", "sched_getaffinity", "sched_setaffinity", "setsid", "killpg", "statvfs", "fchmod", "chown"}
LINUX_ONLY = {"merging", "training.callbacks"}


def test_what_only_unix_has_is_used_only_by_commands_that_need_linux() -> None:
    users = {name for module in UNIX_MODULES for name in importers_of(module)}
    assert users == LINUX_ONLY
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in UNIX_FUNCTIONS or name in LINUX_ONLY, f"{name} line {node.lineno}"


def test_files_and_functions_are_short() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) < 300, file


PROGRAM = """
import json, sys
sys.argv = ["llmft", *json.loads(sys.argv[1])]
from llmft_cli.cli import main
try:
    main()
except SystemExit as left:
    assert left.code == 0
    print("\\n" + json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)], ids=["llmft", *COMMANDS])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = [sys.executable, "-c", PROGRAM, json.dumps([*arguments, "--help"])]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert not modules & HEAVY
    assert "llmft_cli.console" not in modules
