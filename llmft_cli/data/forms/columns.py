"""`--columns prompt=question,completion=answer`: a source's own names for the columns known here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.fields import kind_of

# Every key that the forms of rows look at (but `content`, which is another name of `text`).
COLUMNS = (
    "messages",
    "conversations",
    "tools",
    "functions",
    "system",
    "system_prompt",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "question",
    "query",
    "context",
    "answer",
    "answers",
    "response",
    "text",
    "input_ids",
    "labels",
    "assistant_masks",
    "completion_mask",
    "loss_mask",
    "attention_mask",
)


def parse_columns(text: str) -> dict[str, str]:
    """The columns that `--columns` names, theirs by ours.

    Args:
        text: `ours=theirs` with commas between; a dotted path as theirs (`answer.text`) reaches into objects.

    Raises:
        ConfigError: a part is not `ours=theirs`, or its left side is unknown or named before.
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(
                f"--columns: {part.strip()!r} is not ours=theirs", "write --columns prompt=question,completion=answer"
            )
        if ours not in COLUMNS:
            near = difflib.get_close_matches(ours, COLUMNS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(COLUMNS)}"
            raise ConfigError(f"--columns: {ours!r} in {part.strip()!r} is no column known here", hint)
        if ours in columns:
            raise ConfigError(f"--columns: {ours} is named twice, as {columns[ours]} and as {theirs}", "keep one of them")
        columns[ours] = theirs
    return columns


def renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with the named columns under our names; the others stay.

    Raises:
        RowError: the row lacks a named column.
    """
    taken = set(columns.values())
    result = {key: cell for key, cell in row.items() if key not in taken}
    for ours, theirs in columns.items():
        result[ours] = row[theirs] if theirs in row else reached(row, theirs, ours)
    return result


def reached(row: dict[str, Any], path: str, ours: str) -> Any:
    """What stands at a dotted path."""
    value: Any = row
    steps = path.split(".")
    for number, step in enumerate(steps):
        if not isinstance(value, dict):
            raise RowError(
                f"the column {path} for {ours} is missing: {'.'.join(steps[:number])} is {kind_of(value)}, not an object"
            )
        if step not in value:
            raise RowError(f"the column {path} for {ours} is missing")
        value = value[step]
    return value
