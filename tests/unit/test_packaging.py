"""What a wheel holds and starts, told from pyproject.toml without building one."""

from __future__ import annotations

import importlib
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
