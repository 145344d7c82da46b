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
# Each room imports from those before it alone; rooms of one line do not know each other.
FLOORS = [
    {"base"},
    {"settings"},
    {"run_dir", "gpu"},
    {"models"},
    {"data"},
    {"training", "serving", "merging"},
    {"evaluation", "fit"},
    {"cli"},
    {"__main__"},
]
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
    assert {"settings.config", "run_dir", "models.loading"} <= own_imports("training.train")
    assert {"base.errors", "cli.commands"} <= own_imports("cli.app")


def room(module: str) -> str:
    return module.partition(".")[0]


def test_arrows_between_rooms_point_down() -> None:
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert set(floor_of) == {room(name) for name in MODULES} - {"__init__"}
    for name in set(MODULES) - {"__init__"}:
        for other in own_imports(name) - {"__init__"}:
            assert room(other) == room(name) or floor_of[room(other)] < floor_of[room(name)], f"{name} imports {other}"


def rests_on(module: str) -> set[str]:
    """All modules that a module imports, by way of others, too."""
    found: set[str] = set()
    waiting = own_modules(module)
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting |= own_modules(other)
    return found


def own_modules(module: str) -> set[str]:
    return {other for other in own_imports(module) if not other.endswith("__init__")} - {module}


def test_no_module_imports_itself_by_way_of_others() -> None:
    for name in MODULES:
        assert name not in rests_on(name), name


def test_no_folder_holds_more_than_15_modules() -> None:
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    for folder in folders:
        assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= 15, folder


def test_only_the_console_knows_rich_and_only_the_command_line_knows_typer() -> None:
    assert importers_of("rich") == {"cli.console"}
    assert importers_of("typer") == {"cli.app", "cli.commands", "cli.flags", "cli.help_pages", "cli.options"}


def test_nothing_but_the_console_prints() -> None:
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name} line {node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and room(name) != "cli":
                assert not (isinstance(node.value, ast.Name) and node.value.id == "sys"), f"{name} line {node.lineno}"


def test_the_package_itself_imports_nothing() -> None:
    assert list(imported(MODULES["__init__"])) == []


# What Windows lacks. Only these modules, of commands that need Linux, may import or use it.
UNIX_MODULES = {"fcntl", "resource", "termios", "tty", "pwd", "grp", "pty", "syslog"}
UNIX_FUNCTIONS = {"pread", "pwrite", "preadv", "pwritev", "fork", "forkpty", "getuid", "geteuid", "getgid", "sysconf", "mkfifo"}
UNIX_FUNCTIONS |= {"getloadavg", "sched_getaffinity", "sched_setaffinity", "setsid", "killpg", "statvfs", "fchmod", "chown"}
LINUX_ONLY = {"merging.merge", "training.loop.callbacks"}


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
from llmft_cli.cli.app import main
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
    assert "llmft_cli.cli.console" not in modules
