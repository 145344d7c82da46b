"""How the rows lie in a JSON value: one is the row, a list is wrapped into an object, a table is written by columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from llmft_cli.data.reading.column_names import KNOWN
from llmft_cli.data.reading.rows import BadRow, Row

# Keys of objects around rows; some are also keys of rows.
ENVELOPES = frozenset({"data", "rows", "examples", "train", "instances", "items", "records", "samples", "dataset"})
SPLITS = frozenset({"train", "test", "validation", "valid", "dev", "eval"})
ROW_KEYS = (KNOWN | {"conversation"}) - ENVELOPES
# What a message of a conversation has.
MESSAGES = (frozenset({"role", "content"}), frozenset({"role", "parts"}), frozenset({"from", "value"}))
# One of these makes an object a part of a conversation if no other rows are around it.
SPEAKERS = frozenset({"role", "from", "speaker", "author", "human", "user", "assistant", "gpt", "bot"})
# An object with one of these has lists as cells.
LIST_CELLS = frozenset({"input_ids", "messages", "conversations"})


class Layout(NamedTuple):
    """Where the rows of a JSON object are.

    Attributes:
        kind: `wrapped` (in a list under `key`), `keyed` (each under a key of its own), `split`, `columns` (as pandas writes
            tables), or `splits` (in several lists, which `key` names).
    """

    kind: str
    key: str = ""


def layout_of(value: Mapping[str, Any]) -> Layout | None:
    """The layout of an object that is all of a file, or the beginning of it; None if it is itself a row."""
    values = list(value.values())
    if is_split(value):
        return Layout("split")
    if is_by_columns(value):
        return Layout("columns")
    if not ROW_KEYS.isdisjoint(value):
        return None
    lists = [key for key, part in value.items() if holds_rows(key, part)]
    if len(lists) > 1:
        return Layout("splits", ", ".join(map(repr, lists)))
    alone = len(values) == 1 and isinstance(values[0], list) and not has_speaker(next(iter(values[0]), None))
    if lists or alone:
        return Layout("wrapped", next(iter(lists or value)))
    return Layout("keyed") if is_keyed(values) else None


def is_split(value: Mapping[str, Any]) -> bool:
    """Whether an object is a table as pandas writes it with the orient `split`."""
    columns, data = value.get("columns"), value.get("data")
    if not isinstance(columns, list) or not value.keys() <= {"columns", "index", "data"}:
        return False
    return data is None or (isinstance(data, list) and all(isinstance(row, list) for row in data[:1]))


def is_by_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object has the cells of each column under its name, by index (orient `columns`) or as a list."""
    if not value or not LIST_CELLS.isdisjoint(value):
        return False
    columns = list(value.values())
    named = not KNOWN.isdisjoint(value)
    if all(isinstance(column, list) and column for column in columns):
        lengths = {len(column) for column in columns[:-1] or columns}  # the last may be cut
        return named and len(lengths) == 1 and not any(isinstance(column[0], dict | list) for column in columns)
    if not all(isinstance(column, dict) and column for column in columns):
        return False
    by_number = all(key.isdecimal() for key in columns[0]) and not all(key.isdecimal() for key in value)
    return by_number or (named and KNOWN.isdisjoint(columns[0]))


def is_keyed(values: list[Any]) -> bool:
    """Whether each of the values is a row: an object, or the messages of a conversation."""
    if not values or not all(isinstance(part, dict | list) and part for part in values):
        return False
    first, others = values[0], values[1:-1] or values[1:]  # the last may be cut
    if isinstance(first, list):
        return bool(others) and all(isinstance(part, list) and is_message(part[0]) for part in values)
    if has_speaker(first) or not all(isinstance(part, dict) for part in values):
        return False
    return has_row_keys(first) or (bool(others) and others[-1].keys() == first.keys())


def holds_rows(key: str, value: Any) -> bool:
    """Whether a member of an object is a list of rows, not of the messages of one conversation or of anything else."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict) or is_message(value[0]):
        return False
    return key in ENVELOPES | SPLITS or has_row_keys(value[0])


def has_row_keys(value: Mapping[str, Any]) -> bool:
    return not KNOWN.isdisjoint(value) or is_article(value)


def is_message(value: Any) -> bool:
    """Whether a value is a message of a conversation, and not a row or a part of a tree of messages."""
    if not isinstance(value, dict) or not any(keys <= value.keys() for keys in MESSAGES):
        return False
    return KNOWN.isdisjoint(value.keys() - {"content", "text", "tools"}) and not {"parent_id", "message_id"} & value.keys()


def has_speaker(value: Any) -> bool:
    return isinstance(value, dict) and not SPEAKERS.isdisjoint(value)


def is_article(value: Any) -> bool:
    """Whether a value is an article of SQuAD, with questions on each of its paragraphs."""
    paragraphs = value.get("paragraphs") if isinstance(value, dict) else None
    return isinstance(paragraphs, list) and all(isinstance(part, dict) and "context" in part for part in paragraphs[:1])


def unwrapped(rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """The rows within those of a list that holds pages of the datasets server or articles of SQuAD, by the first."""
    first = next(rows, None)
    if first is None:
        return
    value = first.value if isinstance(first, Row) else None
    if isinstance(value, dict) and {"row_idx", "row"} <= value.keys():
        yield from map(row_of_page, chain([first], rows))
    elif is_article(value):
        for row in chain([first], rows):
            yield from questions_of(row)
    else:
        yield first
        yield from rows


def row_of_page(row: Row | BadRow) -> Row | BadRow:
    """The row that the datasets server has put into an object."""
    if isinstance(row, BadRow) or not isinstance(row.value, dict) or "row" not in row.value:
        return row
    if cells := row.value.get("truncated_cells"):
        names = ", ".join(map(str, cells)) if isinstance(cells, list) else cells
        return BadRow(row.source, row.line, f"the datasets server has cut off its cells: {names}")
    return row._replace(value=row.value["row"])


def questions_of(row: Row | BadRow) -> Iterator[Row | BadRow]:
    """A row for each question of an article: its paragraph is the context."""
    if isinstance(row, BadRow):
        yield row
        return
    try:
        for paragraph in row.value["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [answer["text"] for answer in asked.get("answers") or []]
                value = {"context": paragraph["context"], "question": asked["question"], "answers": answers}
                yield row._replace(value=value)
    except (AttributeError, KeyError, TypeError):
        yield BadRow(row.source, row.line, "an article must have paragraphs with context and qas")
