"""Lists and objects as Python prints them, which is what a cell of a CSV file holds if nobody has written it as JSON."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

# A parsed text takes about a hundred times its own memory.
MOST_CHARACTERS = 1 << 20
STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
# What numpy prints in another way than Python, and the texts in which the same characters mean nothing.
NUMPY = re.compile(
    rf"(?P<end>{STRING}|[}}\]])(?P<gap>\s+)(?=['\"{{\[])"  # elements without a comma between them
    rf"|(?P<text>{STRING})"
    r"|(?P<array>\barray\()"
    rf"|(?P<type>,\s*dtype=(?:\w+|{STRING})(?=\)))"
    r"|(?P<missing>\bnan\b)"
    r"|(?P<cut>\.\.\.)",
    re.DOTALL,
)
CUT = "numpy has left out a part of it (...)"


class NoLiteral(Exception):
    """A text is what Python prints, but not all of it, or not a value that JSON has."""


def from_python(text: str) -> Any:
    """The value of a text that Python or numpy has printed.

    Raises:
        NoLiteral: it is cut, or has values that JSON does not have.
        ValueError: it is not such a text, or too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError("it is too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes that Python does not know
            value = ast.literal_eval(NUMPY.sub(in_python, text).strip())
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("it is not a value of Python") from error
    return as_json_value(value)


def in_python(found: re.Match[str]) -> str:
    """A part of numpy's text as Python writes it."""
    kind = found.lastgroup
    if kind == "gap":
        return f"{found['end']},{found['gap']}"
    if kind == "cut":
        raise NoLiteral(CUT)
    return {"text": found[0], "array": "(", "type": "", "missing": "None"}[str(kind)]


def as_json_value(value: Any) -> Any:
    """A value with lists for tuples.

    Raises:
        NoLiteral: JSON has no such value.
    """
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: as_json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json_value(part) for part in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise NoLiteral(f"it contains a {type(value).__name__}")
