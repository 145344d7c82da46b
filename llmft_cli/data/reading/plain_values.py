"""Cells of Arrow tables as the values that JSON has, which are those that the formats read."""

from __future__ import annotations

from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID


def is_plain(kind: Any) -> bool:
    """Whether the cells of an Arrow type are values of JSON already."""
    import pyarrow

    types = pyarrow.types
    if types.is_map(kind):
        return False
    if types.is_dictionary(kind):
        return is_plain(kind.value_type)
    if types.is_nested(kind):
        return all(is_plain(kind.field(index).type) for index in range(kind.num_fields))
    checks = (types.is_boolean, types.is_integer, types.is_floating, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return any(check(kind) for check in (*checks, *texts))


def plain(value: Any) -> Any:
    """A cell as a value of JSON: bytes as the text that they are in UTF-8, times and decimals as text.

    Bytes that are not UTF-8 stay as they are: no format reads them.
    """
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, date | time):  # a date with a time is a date, too
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | timedelta | UUID) else value
