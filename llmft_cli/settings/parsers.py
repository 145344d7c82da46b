"""Readers of settings in text: shares, rows, weights, encodings. Each raises ValueError for any other text."""

from __future__ import annotations

import codecs
import contextlib
from typing import Any

from llmft_cli.settings.setting import AUTO as AUTO
from llmft_cli.settings.setting import LARGEST_NUMBER

LARGEST_WEIGHT = 10_000
# transformers divides fp32 logits by the temperature: a much smaller one makes them infinite.
LEAST_TEMPERATURE = 1e-6
# Encodings of names and of source code.
NOT_OF_FILES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"}


def share(text: str) -> float:
    """`5%` or `0.05` as 0.05."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def steps_or_share(text: str) -> float:
    """As `share`, where 1 and more is a number: 100% must not become one."""
    number = share(text)
    if text.endswith("%") and number >= 1:
        raise ValueError
    return number


def rows_or_share(text: str) -> float:
    """As `steps_or_share`, where the number is whole."""
    number = steps_or_share(text)
    if number > 1 and not number.is_integer():
        raise ValueError
    return number


def weight(text: str) -> float:
    """How often to use the rows of a source, at most `LARGEST_WEIGHT` times."""
    number = float(text)
    if not 0 < number <= LARGEST_WEIGHT:
        raise ValueError
    return number


def row_count(text: str) -> int:
    """A whole number of rows, 1 or more."""
    number = int(text)
    if not 0 < number <= LARGEST_NUMBER:
        raise ValueError
    return number


def temperature(text: str) -> float:
    """0, or at least `LEAST_TEMPERATURE`."""
    number = float(text)
    if 0 < number < LEAST_TEMPERATURE:
        raise ValueError
    return number


def encoding(text: str) -> str:
    """The name that Python gives to the encoding of a text, or auto."""
    if text.lower() == AUTO:
        return AUTO
    try:
        name = codecs.lookup(text).name
        with contextlib.suppress(UnicodeError):
            b"a".decode(name)  # refuses what turns bytes into bytes, such as base64
    except LookupError as error:
        raise ValueError from error
    if name in NOT_OF_FILES:
        raise ValueError
    return name


# Rules of settings, by what their text must be.
SHARE: dict[str, Any] = {"parse": share, "form": "a share (0.05 or 5%)"}
STEPS: dict[str, Any] = {
    "metavar": "<steps>",
    "parse": steps_or_share,
    "form": "a share below 1 (0.2 or 20%) or a number of steps",
}
ROWS: dict[str, Any] = {"metavar": "<rows>", "parse": rows_or_share, "form": "a share below 1 (0.05 or 5%) or a number of rows"}
TEMPERATURE: dict[str, Any] = {"parse": temperature, "form": f"0 or a number of at least {LEAST_TEMPERATURE:f}"}
WEIGHTS: dict[str, Any] = {
    "metavar": "<list>",
    "is_list": True,
    "parse": weight,
    "form": f"a list of numbers above 0, at most {LARGEST_WEIGHT} (2,0.5)",
}
ROW_COUNTS: dict[str, Any] = {
    "metavar": "<list>",
    "is_list": True,
    "parse": row_count,
    "form": "a list of whole numbers above 0 (1000,500)",
}
ENCODING: dict[str, Any] = {
    "metavar": "<name>",
    "suggestions": (AUTO, "gb18030", "big5", "cp932", "cp949", "cp1252", "utf-16"),
    "parse": encoding,
    "form": "an encoding that Python knows, such as gb18030, cp932 or cp1252",
}
