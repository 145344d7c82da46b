"""Every flag and command that a message or hint names exists: on the command it names, else on each that can show it.

Which commands can show a text is found from the code: what their functions refer to, directly or through others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

import llmft_cli
from llmft_cli.cli.app import app

PACKAGE = Path(llmft_cli.__file__).parent
# Help texts, which belong to the command whose help they are.
LEFT_OUT = {"cli.options", "cli.help_pages", "cli.completion", "settings.definitions"}
ROOT = ("cli.commands", "options")  # llmft's own options
# Of pip and of Slurm.
OPTIONS_OF_OTHERS = {"--no-deps", "--only-binary", "--retries", "--disable-pip-version-check", "--dest"}
OPTIONS_OF_OTHERS |= {"--force-download", "--index-url", "--extra-index-url", "--force-reinstall", "--upgrade"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w*-])")
# The function that each command is, in cli/commands.py.
FUNCTIONS = {
    "gpu-check": "gpu_check",
    "prepare": "prepare",
    "train": "train",
    "merge": "merge",
    "eval": "evaluate",
    "chat": "chat",
}
COMMAND = re.compile(rf"(?<![\w/-])({'|'.join(FUNCTIONS)})(?![\w-])")
# A command line of ours; "llmft cannot ..." is none.
LLMFT = re.compile(r"\bllmft ([a-z-]+)(?= (?:\{\}|[A-Z]{2,}|--|[a-z]+/))")

Place = tuple[str, str]  # a module, and a name at its top level


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


TREES = {module_name(file): ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}


def defined_in(tree: ast.Module) -> dict[str, ast.stmt]:
    """What a module defines at its top level, by name."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {part.id: node for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


DEFINED = {name: defined_in(tree) for name, tree in TREES.items()}


@cache
def imported_in(module: str) -> dict[str, Place]:
    """The names that a module gives to ours, wherever it imports them; a whole module has the name ''."""
    found: dict[str, Place] = {}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "llmft_cli":
            source = (node.module or "").removeprefix("llmft_cli").removeprefix(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix(".")
                found[alias.asname or alias.name] = (inner, "") if inner in TREES else (source, alias.name)
    return found


def references(module: str, node: ast.AST) -> Iterator[Place]:
    """What of the package a piece of a module refers to."""
    names = imported_in(module)
    for part in ast.walk(node):
        if (
            isinstance(part, ast.Attribute)
            and isinstance(part.value, ast.Name)
            and names.get(part.value.id, ("", "x"))[1] == ""
        ):
            yield names[part.value.id][0], part.attr
        elif isinstance(part, ast.Name):
            yield names.get(part.id, (module, part.id))


def reached_from(places: list[Place]) -> set[Place]:
    found: set[Place] = set()
    while places:
        module, name = places.pop()
        if module not in TREES or (module, name) in found:
            continue
        found.add((module, name))
        if name in DEFINED[module]:
            places += references(module, DEFINED[module][name])
        elif name in imported_in(module):  # it is passed on
            places.append(imported_in(module)[name])
    return found


@cache
def commands_that_show() -> dict[Place, set[str]]:
    shown: dict[Place, set[str]] = {}
    for command, function in FUNCTIONS.items():
        for place in reached_from([("cli.commands", function), ("cli.flags", "command"), ("cli.app", "main")]):
            shown.setdefault(place, set()).add(command)
    return shown


def texts_in(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The texts in a piece of code, without docstrings; what stands in braces in an f-string is `{}`.

    With each comes the command that it is for if it is in a table by command, else nothing.
    """
    skipped = {
        id(part.body[0].value)
        for part in ast.walk(node)
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and part.body and isinstance(part.body[0], ast.Expr)
    }
    skipped |= {id(value) for part in ast.walk(node) if isinstance(part, ast.JoinedStr) for value in part.values}
    owner: dict[int, str] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.Dict):
            for key, value in zip(part.keys, part.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in FUNCTIONS:
                    owner |= {id(inner): str(key.value) for inner in ast.walk(value)}
        if isinstance(part, ast.JoinedStr):
            yield (
                "".join(str(value.value) if isinstance(value, ast.Constant) else "{}" for value in part.values),
                owner.get(id(part), ""),
            )
        elif isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in skipped:
            yield part.value, owner.get(id(part), "")


def texts() -> list[tuple[Place, str, str]]:
    """Every text of the package with a flag or a command line in it: where it is, itself, and the command of `texts_in`."""
    found = set()
    for module, names in DEFINED.items():
        if module not in LEFT_OUT:
            for name, node in names.items():
                for text, command in texts_in(node) if (module, name) != ROOT else ():
                    if FLAG.search(text) or LLMFT.search(text):
                        found.add(((module, name), text, command))
    return sorted(found)


@cache
def options_of(command: str) -> set[str]:
    root: Any = typer.main.get_command(app)
    parameters = root.commands[command].get_params(root.make_context("llmft", ["--help"], resilient_parsing=True))
    return {name for item in parameters for name in (*item.opts, *item.secondary_opts)}


def wrong_in(text: str, commands: set[str]) -> list[str]:
    """What a text names that is not there, if any of these commands shows it."""
    wrong = [f"no command {name}" for name in LLMFT.findall(text) if name not in FUNCTIONS]
    for flag in FLAG.finditer(text):
        if flag[0] in OPTIONS_OF_OTHERS:
            continue
        before = text[: flag.start()]
        named = COMMAND.findall(before)
        lacking = [command for command in named[-1:] or sorted(commands) if flag[0] not in options_of(command)]
        # A part of a command line, whose beginning is elsewhere.
        goes_on = before.endswith("{} ") or not before.strip()
        if lacking and not (goes_on and any(flag[0] in options_of(command) for command in FUNCTIONS)):
            wrong.append(f"{flag[0]} is no option of {lacking[0]}")
    return wrong


TEXTS = texts()


@pytest.mark.parametrize(("place", "text", "command"), TEXTS, ids=[".".join(place) for place, _, _ in TEXTS])
def test_every_flag_that_is_named_exists_where_it_is_shown(place: Place, text: str, command: str) -> None:
    commands = {command} if command else commands_that_show().get(place)
    assert commands, "no command shows it"
    assert wrong_in(text, commands) == []


def test_the_search_sees_texts_and_who_shows_them() -> None:
    shown = commands_that_show()
    assert shown["models.adapters", "load_adapter"] == {"eval", "chat", "merge"}
    assert shown["evaluation.prompts", "refuse"] == {"eval", "train"}
    assert shown["training.loop.smaller_passes", "DoesNotFit"] == {"train", "eval"}
    assert shown["data.forms.columns", "parse_columns"] == {"prepare", "train"}
    assert shown["cli.app", "bug"] == set(FUNCTIONS)
    assert {command for place, _, command in TEXTS if place == ("cli.memory_hints", "LESS_MEMORY")} >= {"eval", "chat", "merge"}
    assert len({place[0].partition(".")[0] for place, _, _ in TEXTS}) >= 9


def test_a_wrong_hint_is_noticed() -> None:
    assert wrong_in("use a smaller --batch-size", {"train"}) == []
    assert wrong_in("use a smaller --batch-size", {"train", "chat"}) == ["--batch-size is no option of chat"]
    assert wrong_in("train again with a smaller --batch-size", {"chat"}) == []
    assert wrong_in("llmft chat RUN --batch-size 2", {"train"}) == ["--batch-size is no option of chat"]
    assert wrong_in("llmft tune RUN", {"train"}) == ["no command tune"]
    assert wrong_in("llmft cannot do this with --seed", {"train"}) == []
    assert wrong_in(" --resume", {"chat"}) == []
    assert wrong_in(" --resumed", {"chat"}) == ["--resumed is no option of chat"]
