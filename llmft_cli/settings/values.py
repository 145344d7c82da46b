"""Converting a value to a setting's type, and checking it. Text means the same in a flag and in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.base.unicode_text import why_not_utf8
from llmft_cli.settings.fields import FIELDS, Field
from llmft_cli.settings.quantities import NoUnit
from llmft_cli.settings.setting import AUTO, NONE

LONGEST_SHOWN = 60  # characters of a value in a message
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # as in YAML


class Refused(ValueError):
    """What is wrong with a text, to follow the text itself."""


def validated(name: str, value: Any, origin: str) -> Any:
    """`value` converted to the field's type and checked against its range.

    Args:
        value: text of a flag; text, a list or a mapping of a file; or a value that already has the field's type.
        origin: its flag, or its key and file, for messages.

    Raises:
        ConfigError: it is not allowed.
    """
    item = FIELDS[name]
    nothing = AUTO if item.setting.auto else NONE
    if value is None or (item.optional and isinstance(value, str) and value.strip().lower() == nothing):
        if item.optional:
            return None
        raise ConfigError(f"{origin} has no value")
    try:
        typed = convert(item, value)
    except Refused as error:
        raise ConfigError(f"{origin}: {shown(value)} {error}") from None
    except NoUnit as error:
        raise ConfigError(f"{origin}: {error}", f"did you mean {error.guess}?") from None
    except (TypeError, ValueError):
        raise ConfigError(f"{origin}: {shown(value)} is not {expected_form(item)}") from None
    if complaint := item.setting.complaint(typed):
        raise ConfigError(f"{origin}: {shown(typed)} {complaint}")
    return typed


def convert(item: Field, value: Any) -> Any:
    """The value in the field's type.

    Raises:
        TypeError, ValueError: it cannot be converted.
    """
    if item.type is bool:
        return switch(value)
    if isinstance(value, bool):
        raise TypeError
    if item.type is str:
        if item.setting.is_list:
            return list_text(item, value)
        return item.setting.parse(plain_text(value)) if item.setting.parse else plain_text(value)
    return to_number(item, value)


def switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in SWITCHES:
        raise ValueError
    return SWITCHES[value.lower()]


def plain_text(value: Any) -> str:
    """Text that is not blank, and that can be a file's name and be written to a file."""
    if not isinstance(value, str) or "\0" in value:
        raise TypeError
    if not value.strip():
        raise Refused("is empty")
    if problem := why_not_utf8(value):
        raise Refused(problem)
    return value


def list_text(item: Field, value: Any) -> str:
    """Items separated by commas, without spaces around them; where they are choices, each once."""
    if isinstance(value, Mapping) and item.setting.is_mapping:
        parts = [f"{plain_text(name)}={plain_text(text)}" for name, text in value.items()]
    elif isinstance(value, list):
        parts = [plain_text(part) for part in value]
    else:
        parts = plain_text(value).split(",")
    if not isinstance(value, str) and any("," in part for part in parts):
        raise Refused("has a comma within an item")
    parts = [part.strip() for part in parts] or [NONE] * (NONE in item.setting.choices)
    if not parts or not all(parts):
        raise Refused("has an empty item" if parts else "is empty")
    if parse := item.setting.parse:
        for part in parts:
            parse(part)
    return ",".join(dict.fromkeys(parts) if item.setting.choices else parts)


def to_number(item: Field, value: Any) -> float:
    rule = item.setting
    text = value if isinstance(value, str) else f"{value}{rule.unit}"
    found = rule.parse(text) if rule.parse else float(text)
    if not math.isfinite(found) or (item.type is int and found != int(found)):
        raise ValueError
    return int(found) if item.type is int else found


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def expected_form(item: Field) -> str:
    """What a value of this field must be."""
    return item.setting.form or {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[item.type]
