"""Parsing and formatting of sizes, durations and fractions such as `20GiB`, `1h30m` and `10%`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

from llmft_cli.base.errors import ConfigError
from llmft_cli.settings.parsers import share

Number = TypeVar("Number", int, float)

SIZE_FORM = "a size such as 20GiB, 24GB or 512MiB"
DURATION_FORM = "a duration such as 2h, 1h30m or 45s"
FRACTION_FORM = "a fraction from 0 to 1, or a percentage: 0.1 or 10%"

BINARY_UNITS = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}
# A bare letter is binary, as in Slurm's --mem=20G.
BYTES_PER_UNIT = {unit.lower(): size for unit, size in BINARY_UNITS.items()} | {
    **{letter: 2 ** (10 * power) for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}b": 10 ** (3 * power) for power, letter in enumerate("kmgt", start=1)},
}
SECONDS_PER_UNIT = {"d": 86400, "h": 3600, "m": 60, "s": 1}

NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
SIZE_NUMBER = r"[0-9]{1,19}(?:\.[0-9]{1,9})?"  # a number of bytes may have more digits
ZERO = re.compile(r"0+(?:\.0+)?")
SIZE_PATTERN = re.compile(rf"({SIZE_NUMBER})\s*([a-z]+)")
SMALLEST_IN_BYTES = 2**20  # a smaller number without a unit means GiB
DURATION = re.compile(r"\s*".join(rf"(?:({NUMBER})\s*{unit})?" for unit in SECONDS_PER_UNIT))


class NoUnit(ValueError):
    """A size without a unit.

    Attributes:
        guess: what was probably meant: `12GiB` for 12.
    """

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} has no unit")
        self.guess = f"{text.strip()}{'GiB' if float(text) < SMALLEST_IN_BYTES else 'B'}"


def parse_size(text: str) -> int:
    """Bytes of a size, rounded up: `20GiB`, `20 GB` (10^9 bytes each), `20G` (the same as GiB), `512MiB`, `0`.

    Raises:
        NoUnit: it is a number other than 0.
        ValueError: it is not a size; the message says why.
    """
    plain = text.strip().lower()
    if ZERO.fullmatch(plain):
        return 0
    found = SIZE_PATTERN.fullmatch(plain)
    if not found:
        raise NoUnit(text) if re.fullmatch(SIZE_NUMBER, plain) else ValueError(f"{text!r} is not {SIZE_FORM}")
    number, unit = found.groups()
    if unit not in BYTES_PER_UNIT:
        raise ValueError(f"{text!r} has an unknown unit: {unit!r}")
    return math.ceil(Decimal(number) * BYTES_PER_UNIT[unit])


# The rules of a setting that is a size. A saved size is a number of bytes.
SIZE: dict[str, Any] = {
    "metavar": "<size>",
    "minimum": 1,
    "maximum": 2**60,
    "parse": parse_size,
    "form": SIZE_FORM,
    "unit": "B",
}


def parse_duration(text: str) -> float:
    """Seconds of a duration: `2h`, `90m`, `1h30m`, `1d 12h`, `45s`, `0`.

    Raises:
        ValueError: it is not a duration; the message says why.
    """
    plain = text.strip().lower()
    if ZERO.fullmatch(plain):
        return 0.0
    if re.fullmatch(NUMBER, plain):
        raise ValueError(f"{text!r} has no unit")
    found = DURATION.fullmatch(plain)
    if not plain or not found:
        raise ValueError(f"{text!r} is not {DURATION_FORM}")
    return float(
        sum(Decimal(number or 0) * seconds for number, seconds in zip(found.groups(), SECONDS_PER_UNIT.values(), strict=True))
    )


def parse_count(text: str) -> int:
    """A whole number of 1 or more.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not int(text):
        raise ValueError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def parse_fraction(text: str) -> float:
    """`10%` or `0.1` as 0.1.

    Raises:
        ValueError: it is not from 0 to 1.
    """
    try:
        value = share(text.strip())
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not {FRACTION_FORM}")
    return value


def parse_flag(parse: Callable[[str], Number], text: str, origin: str, example: str) -> Number:
    """`parse(text)`, with a user-facing error.

    Args:
        origin: the flag or key that the text was given for.
        example: a valid value, for the hint.

    Raises:
        ConfigError: the text is malformed.
    """
    try:
        return parse(text)
    except NoUnit as error:
        raise ConfigError(f"{origin}: {error}", f"did you mean {origin} {error.guess}?") from None
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}", f"for example: {origin} {example}") from None


def format_size(count: int, round_up: bool = False) -> str:
    """Format bytes with at most one decimal, rounded down: `20 GiB`, `3.1 GiB`, `512 MiB`.

    Use `round_up` for requirements: a required size then never reads the same as a smaller available one.
    """
    unit, size = next(((unit, size) for unit, size in BINARY_UNITS.items() if count >= size), ("B", 1))
    tenths = -(-count * 10 // size) if round_up else count * 10 // size
    return f"{tenths // 10}.{tenths % 10} {unit}".replace(".0 ", " ")


def format_duration(seconds: float) -> str:
    """Format a duration in whole seconds, as `parse_duration` reads it: `2h`, `1h30m`, `45s`, `0s`."""
    rest = round(seconds)
    parts = []
    for unit, size in SECONDS_PER_UNIT.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2 rows`, `1,000 passes`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
