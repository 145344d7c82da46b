"""Prompts to evaluate on: from a file, or the run's held-out rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import DataError
from llmft_cli.data.forms.formats import Message, RowError, parse_prompt_messages


@dataclass(frozen=True)
class Prompt:
    """Messages for the assistant to answer, the expected answer, if any, and where they stand."""

    messages: list[Message]
    expected: str | None
    where: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts in a file: one per line in `.txt`; in `.jsonl` objects with `prompt` or `messages`, and optional `expected`.

    Raises:
        DataError: the file is missing, empty or of another type, or a line is not a prompt.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError(
            f"{path} is not a prompt file", "give a .txt with one prompt per line, or a .jsonl with `prompt` and `expected`"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"the prompt file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt file {path} is not UTF-8 (byte {error.start})") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError(f"the prompt file {path} is empty")
    if path.suffix == ".txt":
        return [Prompt([{"role": "user", "content": line.strip()}], None, f"{path} line {number}") for number, line in numbered]
    return [parse_prompt(line, f"{path} line {number}") for number, line in numbered]


def parse_prompt(line: str, where: str) -> Prompt:
    try:
        value: Any = json.loads(line)
        messages = parse_prompt_messages(value)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: malformed JSON: {error}") from error
    except RowError as error:
        raise DataError(f"{where}: {error}") from error
    expected = value.get("expected")
    if expected is not None and not isinstance(expected, str):
        raise DataError(f"{where}: expected must be text")
    return Prompt(messages, expected, where)
