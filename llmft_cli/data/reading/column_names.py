"""The names of a table's columns: checked, and in the spelling that the formats know."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from llmft_cli.base.errors import DataError
from llmft_cli.data.forms.columns import COLUMNS

KNOWN = frozenset(COLUMNS) | {"content", "chosen", "rejected"}


def check_names(where: str, names: Sequence[str]) -> None:
    """Check that no two columns share a name.

    Raises:
        DataError: two do.
    """
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{where}: the column {reprlib.repr(repeated)} appears more than once")


def known_names(names: Sequence[str], given: Collection[str]) -> list[str]:
    """The names without spaces around them, and as the formats spell them (`Output` is `output`).

    A name stays as it is if another column would then have the same.

    Args:
        given: names that the user gives; they stay as they are.
    """
    return changed(changed(names, str.strip, given), as_known, {*given, *(name.strip() for name in given)})


def as_known(name: str) -> str:
    return name.lower() if name.lower() in KNOWN else name


def changed(names: Sequence[str], change: Callable[[str], str], given: Collection[str]) -> list[str]:
    wanted = [name if name in given else change(name) for name in names]
    counts = Counter(wanted)
    return [new if counts[new] == 1 else old for old, new in zip(names, wanted, strict=True)]
