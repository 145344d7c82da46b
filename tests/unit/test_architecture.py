"""The shape of the package: which room may import which, how large things are, and that help costs no heavy import."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import llmft_cli

PACKAGE = Path(llmft_cli.__file__).parent
# Each room imports from those before it alone; rooms of one line do not know each other.
FLOORS = [
    {"base"},
    {"settings"},
    {"run_dir", "gpu"},
    {"models"},
    {"data"},
    {"recipe"},
    {"training", "serving", "merging"},
    {"evaluation", "fit"},
    {"search"},
    {"cli"},
    {"__main__"},
]
MOST_LINES_OF_A_MODULE, MOST_LINES_OF_A_FUNCTION = 300, 45
MOST_MODULES_OF_A_FOLDER, MOST_ENTRIES_OF_TRAINING = 15, 14


def imported_by(tree: ast.AST) -> set[str]:
    """Full names of what is imported anywhere in a module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


# By name, as in `training.train`; the package's own __init__.py is `__init__`.
FILES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
IMPORTS = {name: imported_by(tree) for name, tree in TREES.items()}
# Modules of ours that a module imports.
ARROWS = {
    name: {other for other in FILES if any(is_in(item, f"llmft_cli.{other}") for item in items)}
    for name, items in IMPORTS.items()
}


def importers_of(package: str) -> set[str]:
    return {name for name, items in IMPORTS.items() if any(is_in(item, package) for item in items)}


def room(module: str) -> str:
    return module.partition(".")[0]


# -- what imports what


def test_the_walk_sees_imports() -> None:
    assert {"settings.config", "run_dir.run", "models.loading"} <= ARROWS["training.train"]
    assert {"base.errors", "cli.commands"} <= ARROWS["cli.app"]


def test_arrows_between_rooms_point_down() -> None:
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert set(floor_of) == {room(name) for name in FILES} - {"__init__"}
    for name, others in ARROWS.items():
        for other in others:
            assert room(other) == room(name) or floor_of[room(other)] < floor_of[room(name)], f"{name} imports {other}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter(ARROWS).prepare()  # raises an error that names the circle


def test_only_the_console_knows_rich_and_only_the_command_line_knows_typer() -> None:
    assert importers_of("rich") == {"cli.console"}
    assert importers_of("typer") == {"cli.app", "cli.commands", "cli.flags", "cli.help_pages", "cli.options"}


def test_the_package_itself_imports_nothing() -> None:
    assert IMPORTS["__init__"] == set()


# -- sizes


def test_modules_are_short() -> None:
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_MODULE} == {}


def test_functions_are_short() -> None:
    """From `def` to the last line: with the docstring, without decorators."""
    too_long = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    too_long.append(f"{name}.{node.name}: {lines} lines")
    assert too_long == []


def test_folders_are_small() -> None:
    modules = {folder: list(folder.glob("[!_]*.py")) for folder in (PACKAGE, *PACKAGE.rglob("*/"))}
    assert {folder.name: len(found) for folder, found in modules.items() if len(found) > MOST_MODULES_OF_A_FOLDER} == {}
    entries = [item for item in (PACKAGE / "training").iterdir() if item.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES_OF_TRAINING


# -- what only some modules do


def test_nothing_but_the_console_prints() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name} line {node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and room(name) != "cli":
                assert not (isinstance(node.value, ast.Name) and node.value.id == "sys"), f"{name} line {node.lineno}"


# What Windows lacks. Only these modules, of commands that need Linux, may import or use it.
UNIX_MODULES = {"fcntl", "resource", "termios", "tty", "pwd", "grp", "pty", "syslog"}
UNIX_FUNCTIONS = {"pread", "pwrite", "preadv", "pwritev", "fork", "forkpty", "getuid", "geteuid", "getgid", "sysconf", "mkfifo"}
UNIX_FUNCTIONS |= {"getloadavg", "sched_getaffinity", "sched_setaffinity", "setsid", "killpg", "statvfs", "fchmod", "chown"}
LINUX_ONLY = {"merging.merge", "training.loop.callbacks"}


def test_what_only_unix_has_is_used_only_by_commands_that_need_linux() -> None:
    users = {name for module in UNIX_MODULES for name in importers_of(module)}
    assert users == LINUX_ONLY
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in UNIX_FUNCTIONS or name in LINUX_ONLY, f"{name} line {node.lineno}"


# -- help


HEAVY = {"torch", "transformers", "datasets", "peft", "bitsandbytes", "wandb", "matplotlib", "scipy", "pyarrow"}
COMMANDS = ("gpu-check", "prepare", "train", "merge", "eval", "chat")
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
