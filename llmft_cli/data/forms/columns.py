"""`--columns prompt=question,completion=answer`: maps a source's column names to the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.fields import type_name

# Every key that the formats read (except `content`, an alias of `text`).
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
    "loss_weights",
    "loss_scale",
    "attention_mask",
)


def parse_columns(text: str) -> dict[str, str]:
    """The source's column names by known name.

    Args:
        text: comma-separated `ours=theirs`; theirs may be a dotted path into objects (`answer.text`), and begin with
            spaces.

    Raises:
        ConfigError: a part is not `ours=theirs`, or its left side is unknown or repeated.
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = part.partition("=")
        ours = ours.strip()
        if not (ours and equals and theirs.strip()):
            raise ConfigError(
                f"--columns: {part.strip()!r} is not name=column", "write --columns prompt=question,completion=answer"
            )
        if ours not in COLUMNS:
            near = difflib.get_close_matches(ours, COLUMNS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known columns: {', '.join(COLUMNS)}"
            raise ConfigError(f"--columns: {ours!r} in {part.strip()!r} is not a known column", hint)
        if ours in columns:
            raise ConfigError(f"--columns: {ours} is named twice, as {columns[ours]} and as {theirs}", "keep one of them")
        columns[ours] = theirs
    return columns


def renamed(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with the mapped columns renamed; the others stay.

    A column that the row does not have as it is written is looked up without regard to spaces around its name.

    Raises:
        RowError: the row lacks a mapped column.
    """
    found = {ours: key_of(row, theirs) for ours, theirs in columns.items()}
    taken = set(found.values())
    result = {key: cell for key, cell in row.items() if key not in taken}
    for ours, key in found.items():
        result[ours] = row[key] if key in row else value_at(row, key, ours)
    return result


def key_of(row: dict[str, Any], column: str) -> str:
    """The key that a column is under, or its name without spaces around it if that is not a key."""
    if column in row:
        return column
    bare = column.strip()
    return next((key for key in row if key.strip() == bare), bare)


def value_at(row: dict[str, Any], path: str, ours: str) -> Any:
    """The value at a dotted path."""
    value: Any = row
    steps = path.split(".")
    for number, step in enumerate(steps):
        if not isinstance(value, dict):
            raise RowError(
                f"the column {path} for {ours} is missing: {'.'.join(steps[:number])} is {type_name(value)}, not an object"
            )
        if step not in value:
            raise RowError(f"the column {path} for {ours} is missing")
        value = value[step]
    return value
