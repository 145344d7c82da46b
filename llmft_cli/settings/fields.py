"""The config's fields as the command line needs them, and their names: flags, and those of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from llmft_cli.settings.definitions import Config
from llmft_cli.settings.setting import Setting

# Names in transformers' Trainer, accepted in a config file.
ALIASES = {
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "lr_scheduler_type": "lr_scheduler",
    "model_name_or_path": "model",
}


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
        yield Field(item.name, base, optional or item.default is None, item.default, item.metadata["setting"])


FIELDS = {item.name: item for item in fields()}


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
