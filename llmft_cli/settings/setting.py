"""What is known of a single setting besides its type and default, kept in the metadata of its config field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Command = Literal["gpu-check", "prepare", "train", "merge", "eval", "chat"]


@dataclass(frozen=True)
class Setting:
    """What is known of one config field besides its type and default.

    Attributes:
        help: its first sentence must stand alone: the short help shows nothing else.
        panel: heading of its group in the help.
        commands: the commands that have the flag.
        primary: those of them whose short help shows it.
        only_with: by command, the option without which the setting cannot be changed, or does nothing, there.
        metavar: what stands for the value in the help; by default the name of the type.
        suggestions: values that shell completion offers where others are allowed, too.
        minimum, above, maximum, below: the range, with and without its ends.
        parse: reads it from text, where more than a plain number is taken.
        form: what such a text must be, for the complaint.
    """

    help: str
    panel: str
    commands: tuple[Command, ...]
    primary: tuple[Command, ...] = ()
    only_with: Mapping[Command, str] = field(default_factory=dict)
    metavar: str = ""
    suggestions: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], float] | None = None
    form: str = ""

    def complaint(self, value: Any) -> str:
        """Why `value` is not allowed, or an empty string."""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum}"
        if self.above is not None and value <= self.above:
            return f"must be above {self.above}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum}"
        if self.below is not None and value >= self.below:
            return f"must be below {self.below}"
        return ""


def share(text: str) -> float:
    """`5%` or `0.05` as 0.05."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def rows_or_share(text: str) -> float:
    """As `share`, where 1 and more is a number of rows: 100% must not become one row."""
    number = share(text)
    if (text.endswith("%") and number >= 1) or (number > 1 and number != int(number)):
        raise ValueError
    return number


def setting(default: Any, help: str, panel: str, commands: str, *, primary: str = "", **rules: Any) -> Any:
    """A dataclass field whose metadata is a `Setting`; names of commands are separated by spaces."""
    rule = Setting(help, panel, tuple(commands.split()), tuple(primary.split()), **rules)  # type: ignore[arg-type]
    return field(default=default, metadata={"setting": rule})


OF_PREPARED_DATA = {"train": "--data"}  # without it, train takes what the run was prepared with, and refuses anything else


def data_setting(default: Any, help: str, commands: str = "prepare train", **rules: Any) -> Any:
    """A setting of how data is prepared."""
    return setting(default, help, "Data", commands, only_with=OF_PREPARED_DATA, **rules)
