"""What a wheel holds and starts, told from pyproject.toml without building one."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import llmft_cli

PACKAGE = Path(llmft_cli.__file__).parent
PROJECT: dict[str, Any] = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    packed = {
        file
        for package, names in patterns.items()
        for name in names
        for file in PACKAGE.joinpath(*package.split(".")[1:]).glob(name)
    }
    there = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert there == packed
    assert PACKAGE / "data" / "report" / "report.html.jinja" in packed


def test_every_folder_with_code_is_a_package() -> None:
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_command_is_the_command_line() -> None:
    module, _, function = PROJECT["project"]["scripts"]["llmft"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_source_distribution_holds_what_readme_links_to() -> None:
    root = PACKAGE.parent
    lines = [line.split() for line in (root / "MANIFEST.in").read_text(encoding="utf-8").splitlines()]
    packed = {name for command, *names in lines if command in ("include", "graft") for name in names}
    assert PROJECT["project"]["readme"] == "README.md"  # which setuptools packs without being told
    linked = re.findall(r"\]\(([\w-][^():#]*)", (root / "README.md").read_text(encoding="utf-8"))
    assert len(linked) > 5
    assert {name.partition("/")[0] for name in linked} <= packed
