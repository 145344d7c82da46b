"""What is known of a single setting besides its type and default, kept in the metadata of its config field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Command = Literal["gpu-check", "prepare", "train", "merge", "eval", "chat"]
LARGEST_NUMBER = 2**31 - 1  # the product of two such numbers still fits into 64 bits
NONE = "none"
AUTO = "auto"


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
        minimum, above, maximum, below: the range of a number, with and without its ends.
        choices: the values that are allowed; of a list, for each item.
        is_list: whether its text is a list, separated by commas; in a file it may also be a YAML list.
        is_mapping: whether the items of the list are `name=value`; in a file it may also be a YAML mapping.
        parse: reads it from text, where not every text or more than a plain number is taken; of a list, each item.
        form: what such a text must be, for the complaint.
        unit: what follows the number in text that `parse` reads, where a saved number has none.
        auto: whether the text `auto`, which is the default, leaves it to the recipe: the value is None until that is
            settled (`recipe.settle`).
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
    maximum: float = LARGEST_NUMBER
    below: float | None = None
    choices: tuple[str, ...] = ()
    is_list: bool = False
    is_mapping: bool = False
    parse: Callable[[str], Any] | None = None
    form: str = ""
    unit: str = ""
    auto: bool = False

    def complaint(self, value: Any) -> str:
        """Why `value` is not allowed, or an empty string."""
        if isinstance(value, str):
            return self._complaint_about_choice(value) if self.choices else ""
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum}"
        if self.above is not None and value <= self.above:
            return f"must be above {self.above}"
        if value > self.maximum:
            return f"must be at most {self.maximum}"
        if self.below is not None and value >= self.below:
            return f"must be below {self.below}"
        return ""

    def _complaint_about_choice(self, value: str) -> str:
        items = value.split(",") if self.is_list else [value]
        if any(item not in self.choices for item in items):
            several = ", or several of them" if self.is_list else ""
            return f"must be one of {', '.join(self.choices)}{several}"
        if len(items) > 1 and NONE in items:
            return f"has {NONE} besides other values"
        return ""


def setting(default: Any, help: str, panel: str, commands: str, *, primary: str = "", **rules: Any) -> Any:
    """A dataclass field whose metadata is a `Setting`; names of commands are separated by spaces."""
    rule = Setting(help, panel, tuple(commands.split()), tuple(primary.split()), **rules)  # type: ignore[arg-type]
    return field(default=default, metadata={"setting": rule})


def auto_setting(help: str, panel: str, commands: str, **rules: Any) -> Any:
    """A number that the recipe settles unless it is given."""
    return setting(None, help, panel, commands, auto=True, suggestions=(AUTO,), **rules)


BASE = "gpu-check prepare train"  # what loads the model or its tokenizer before there is an adapter
OF_PREPARED_DATA = {"train": "--data"}  # without it, train takes what the run was prepared with, and refuses anything else


def data_setting(default: Any, help: str, commands: str = "prepare train", **rules: Any) -> Any:
    """A setting of how data is prepared."""
    return setting(default, help, "Data", commands, only_with=OF_PREPARED_DATA, **rules)
