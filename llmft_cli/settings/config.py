"""The config of a command, merged from flags, a config file and the run's saved settings.

The flags, the YAML keys and the settings saved in the run all come from the fields of `Config`.
Precedence: flag, then `--config FILE`, then the run's saved settings, then the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.settings.definitions import Config as Config
from llmft_cli.settings.fields import ALIASES as ALIASES
from llmft_cli.settings.fields import FIELDS as FIELDS
from llmft_cli.settings.fields import Field as Field
from llmft_cli.settings.fields import flag_of as flag_of
from llmft_cli.settings.setting import AUTO, Command
from llmft_cli.settings.values import shown
from llmft_cli.settings.values import validated as validated
from llmft_cli.settings.yaml_files import Value, read_mapping


@dataclass(frozen=True)
class Alternative:
    """Two settings of the same thing. The one that was given last counts.

    Attributes:
        name: the setting that counts if neither is given.
        replacement: the one that replaces it if it is set.
        purposes: what the other is for, if one of them is removed: `name`, then `replacement`.
    """

    name: str
    replacement: str
    purposes: tuple[str, str]

    @property
    def names(self) -> tuple[str, str]:
        return self.name, self.replacement


COUNT_ROWS, COUNT_SEQUENCES, FILL_BY_TOKENS = "count rows", "count sequences", "fill batches by tokens"
ALTERNATIVES = (
    Alternative("rows_per_step", "batch_size", (COUNT_SEQUENCES, COUNT_ROWS)),
    Alternative("rows_per_step", "tokens_per_batch", (FILL_BY_TOKENS, COUNT_ROWS)),
    Alternative("rows_per_step", "gradient_accumulation_steps", (COUNT_SEQUENCES, COUNT_ROWS)),
    Alternative("batch_size", "tokens_per_batch", (FILL_BY_TOKENS, COUNT_SEQUENCES)),
    Alternative("num_epochs", "max_steps", ("count steps", "count passes over the rows")),
)


@dataclass(frozen=True)
class FileSettings:
    """The checked settings of a config file, by field name."""

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def label(self, name: str) -> str:
        return f"{name} in {self.path}"


def resolve(flags: Mapping[str, Any], file: Path | None = None, saved: Mapping[str, Any] | None = None) -> Config:
    """`merged`, with the settings of a YAML file, or none.

    Raises:
        ConfigError: as `merged` and `read_settings`.
    """
    return merged(flags, read_settings(file) if file else FileSettings(), saved)


def merged(flags: Mapping[str, Any], file: FileSettings, saved: Mapping[str, Any] | None = None) -> Config:
    """Merge and validate all settings.

    Args:
        flags: values from the command line, by field name; None means not given.
        saved: the settings that the run was prepared or trained with, or None.

    Raises:
        ConfigError: a flag of the wrong type or out of range, or two settings that exclude each other.
    """
    values = {name: value for name, value in (saved or {}).items() if name in FIELDS}
    values = override(values, file.values, file.label)
    from_flags = {name: validated(name, value, flag_of(name)) for name, value in flags.items() if value is not None}
    return Config(**override(values, from_flags, flag_of))


def override(values: Mapping[str, Any], layer: Mapping[str, Any], label: Callable[[str], str]) -> dict[str, Any]:
    """`values` overridden by those of `layer`; of two alternatives, either in the layer replaces both in `values`.

    Args:
        label: how error messages name a setting of the layer.

    Raises:
        ConfigError: the layer sets both of two alternatives.
    """
    kept = dict(values)
    for pair in ALTERNATIVES:
        given = [name for name in pair.names if layer.get(name) is not None]
        if len(given) > 1:
            one, other = (f"{label(name)} ({shown(layer[name])})" for name in pair.names)
            raise ConfigError(
                f"{one} and {other} cannot be combined",
                f"remove {label(pair.name)} to {pair.purposes[0]}, or {label(pair.replacement)} to {pair.purposes[1]}",
            )
        if given:
            kept = {name: value for name, value in kept.items() if name not in pair.names}
    return kept | dict(layer)


def read_settings(path: Path) -> FileSettings:
    """The settings of a YAML file, checked.

    Raises:
        ConfigError: as `read_file`, or a value of the wrong type or out of range.
    """
    file = FileSettings(path)
    return FileSettings(path, {name: validated(name, value, file.label(name)) for name, value in read_file(path).items()})


def read_file(path: Path) -> dict[str, Value]:
    """Settings from a flat YAML file as text, by field name; dashes and transformers' names are accepted.

    Raises:
        ConfigError: it cannot be read, is not a flat mapping, or has an unknown or repeated setting.
    """
    values: dict[str, Value] = {}
    for key, value in read_mapping(path, "config file"):
        name = known_name(key, path)
        if name in values:
            second = "" if key == name else f", the second time as {key}"
            raise ConfigError(f"{name} is set twice in {path}{second}", "remove one of them")
        values[name] = value
    return values


def known_name(key: str, path: Path) -> str:
    name = key.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in FIELDS:
        near = difflib.get_close_matches(name[:60], [*FIELDS, *ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else "`llmft train --help-all` lists the settings"
        raise ConfigError(f"unknown setting {key if key.isprintable() and len(key) <= 60 else shown(key)} in {path}", hint)
    return name


def is_valid(name: str, value: Any) -> bool:
    """Whether a setting that a run has saved can have this value; settings of other versions can have any."""
    item = FIELDS.get(name)
    if item is None or value is None:
        return item is None or item.optional
    return (type(value) is item.type or (item.type is float and type(value) is int)) and not item.setting.complaint(value)


def dump(values: Mapping[str, Any]) -> str:
    """Settings as YAML that `read_file` accepts; in ASCII, because PyYAML loses U+0085 when it writes Unicode."""
    import yaml

    return yaml.safe_dump({name: with_unit(name, value) for name, value in values.items()}, sort_keys=False)


def with_unit(name: str, value: Any) -> Any:
    if value is None and name in FIELDS and FIELDS[name].setting.auto:
        return AUTO
    unit = FIELDS[name].setting.unit if name in FIELDS else ""
    return f"{value}{unit}" if unit and value is not None else value


def of_command(config: Config, command: Command) -> dict[str, Any]:
    """The settings that `command` uses, by field name; of two alternatives, only the one that counts."""
    used = {name: getattr(config, name) for name, item in FIELDS.items() if command in item.setting.commands}
    for pair in ALTERNATIVES:
        if used.get(pair.replacement) is not None:
            used.pop(pair.name, None)
    return used
