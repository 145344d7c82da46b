"""The config of a command, merged from flags, a config file and the run's saved settings.

The flags, the YAML keys and the settings saved in the run all come from the fields of `Config`.
Precedence: flag, then `--config FILE`, then the run's saved settings, then the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from llmft_cli.base.errors import ConfigError
from llmft_cli.base.unicode_text import why_not_utf8
from llmft_cli.settings.definitions import Config as Config
from llmft_cli.settings.setting import Command, Setting

# Names in transformers' Trainer, accepted in a config file.
ALIASES = {
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "lr_scheduler_type": "lr_scheduler",
    "model_name_or_path": "model",
}
# Two ways to set the size of a batch.
BATCH_SIZES = ("batch_size", "tokens_per_batch")


@dataclass(frozen=True)
class Field:
    """A config field as the command line needs it."""

    name: str
    type: type
    optional: bool
    default: Any
    setting: Setting


def fields() -> Iterator[Field]:
    hints = get_type_hints(Config)
    for item in dataclasses.fields(Config):
        hint = hints[item.name]
        optional = get_origin(hint) in (Union, UnionType)
        base = next(arg for arg in get_args(hint) if arg is not type(None)) if optional else hint
        yield Field(item.name, base, optional, item.default, item.metadata["setting"])


FIELDS = {item.name: item for item in fields()}


def resolve(flags: Mapping[str, Any], file: Path | None = None, saved: Mapping[str, Any] | None = None) -> Config:
    """Merge and validate all settings.

    Args:
        flags: values from the command line, by field name; None means not given.
        file: a YAML file of settings, or None.
        saved: the settings that the run was prepared or trained with, or None.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, two settings that exclude each other, or
            an unreadable file.
    """
    values = {name: value for name, value in (saved or {}).items() if name in FIELDS}
    if file is not None:
        from_file = {name: validated(name, value, f"{name} in {file}") for name, value in read_file(file).items()}
        values = override(values, from_file, lambda name: f"{name} in {file}")
    from_flags = {name: validated(name, value, flag_of(name)) for name, value in flags.items() if value is not None}
    return Config(**override(values, from_flags, flag_of))


def override(values: Mapping[str, Any], layer: Mapping[str, Any], label: Callable[[str], str]) -> dict[str, Any]:
    """`values` overridden by those of `layer`; a batch size of either kind replaces one of the other kind, too.

    Args:
        label: how error messages name a setting of the layer.

    Raises:
        ConfigError: the layer sets the size of a batch both ways.
    """
    given = [name for name in BATCH_SIZES if layer.get(name) is not None]
    if len(given) > 1:
        rows, tokens = (f"{label(name)} ({layer[name]})" for name in BATCH_SIZES)
        raise ConfigError(
            f"{rows} and {tokens} cannot be combined",
            f"remove {label('batch_size')} to fill batches by tokens, or {label('tokens_per_batch')} to count sequences",
        )
    kept = {name: value for name, value in values.items() if not given or name not in BATCH_SIZES}
    return kept | dict(layer)


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_file(path: Path) -> dict[str, Any]:
    """Settings from a flat YAML file, by field name; dashes and transformers' names are accepted.

    Raises:
        ConfigError: it cannot be read, is not a flat mapping, or has an unknown or repeated setting.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must contain `key: value` lines, not a {type(content).__name__}")
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = known_name(str(key), path)
        if name in values:
            raise ConfigError(f"{name} is set twice in {path}, the second time as {key}", "remove one of them")
        values[name] = value
    return values


def known_name(key: str, path: Path) -> str:
    name = key.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in FIELDS:
        near = difflib.get_close_matches(name, [*FIELDS, *ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else "`llmft train --help-all` lists the settings"
        raise ConfigError(f"unknown setting {key} in {path}", hint)
    return name


def validated(name: str, value: Any, origin: str) -> Any:
    """`value` converted to the field's type and checked against its range; `origin` names its flag or file."""
    item = FIELDS[name]
    if value is None:
        if item.optional:
            return None
        raise ConfigError(f"{origin} has no value")
    try:
        typed = convert(item, value)
    except (TypeError, ValueError):
        raise ConfigError(f"{origin}: {value!r} is not {expected_form(item)}") from None
    complaint = item.setting.complaint(typed) or (why_not_utf8(typed) if isinstance(typed, str) else "")
    if complaint:
        raise ConfigError(f"{origin}: {typed!r} {complaint}")
    return typed


def convert(item: Field, value: Any) -> Any:
    if item.type is bool or isinstance(value, bool):
        if item.type is not bool or not isinstance(value, bool):
            raise TypeError
        return value
    if item.type is str:
        if item.name == "target_modules" and isinstance(value, list):
            return ",".join(map(str, value))
        if not isinstance(value, str):
            raise TypeError
        return value
    # YAML 1.1 reads 2e-4 as a string, so numeric strings are converted.
    number = (item.setting.parse or float)(str(value))
    if not math.isfinite(number) or (item.type is int and number != int(number)):
        raise ValueError
    return int(number) if item.type is int else number


def expected_form(item: Field) -> str:
    """What a value of this field must be."""
    return item.setting.form or {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[item.type]


def dump(values: Mapping[str, Any]) -> str:
    """Settings as YAML that `read_file` accepts; in ASCII, because PyYAML loses U+0085 when it writes Unicode."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False)


def of_command(config: Config, command: Command) -> dict[str, Any]:
    """The settings that `command` uses, by field name; without `batch_size` if `tokens_per_batch` is set."""
    used = {name: getattr(config, name) for name, item in FIELDS.items() if command in item.setting.commands}
    if used.get("tokens_per_batch") is not None:
        del used["batch_size"]
    return used
