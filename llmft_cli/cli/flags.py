"""Turns settings into flags, and functions into commands with these flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmft_cli.base.errors import UsageError
from llmft_cli.base.preconditions import check_one_process, check_platform
from llmft_cli.base.unicode_text import why_not_utf8
from llmft_cli.cli.completion import one_of
from llmft_cli.cli.help_pages import CommandWithPages, full_text
from llmft_cli.cli.options import ConfigOption, DebugOption, FullHelpOption, JsonOption, QuietOption
from llmft_cli.settings import config as settings
from llmft_cli.settings.setting import Command

if TYPE_CHECKING:
    from llmft_cli.cli.console import Console

GENERAL = {
    "config_file": (ConfigOption, None),
    "as_json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "debug": (DebugOption, False),
    "help_all": (FullHelpOption, False),
}
LOAD_A_MODEL = {"train", "merge", "eval", "chat"}
TYPE_NAMES = {str: "<str>", int: "<int>", float: "<float>"}  # as Typer calls them


def settings_flags(command: Command) -> dict[str, Any]:
    """Typer annotations of the flags that set a command's settings, by field name.

    All but switches are taken as text: `config.resolve` reads them, so that flags and files get the same checks and words.
    """
    flags: dict[str, Any] = {}
    for name, item in settings.FIELDS.items():
        rule = item.setting
        if command not in rule.commands:
            continue
        flag = settings.flag_of(name)
        if item.type is bool:
            names = f"{flag}/--no-{flag[2:]}" if item.default is not False else flag
            option = typer.Option(names, help=full_text(item), rich_help_panel=rule.panel, show_default=False)
            flags[name] = Annotated[bool | None, option]
        else:
            option = typer.Option(
                flag,
                help=full_text(item),
                metavar=rule.metavar or ("<choice>" if rule.choices else TYPE_NAMES[item.type]),
                rich_help_panel=rule.panel,
                show_default=False,
                autocompletion=one_of(rule.choices or rule.suggestions) if rule.choices or rule.suggestions else None,
            )
            flags[name] = Annotated[str | None, option]
    return flags


def command(app: typer.Typer, name: Command) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command with `app`: its own parameters, the flags of its settings, and the general options.

    The function gets its own parameters, and `given`: the settings from flags and file, to be
    completed by `Given.config`, and the console to show things on.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        from_settings = settings_flags(name)
        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (kind, default) in ({key: (kind, None) for key, kind in from_settings.items()} | GENERAL).items()
        ]

        def run(**values: Any) -> None:
            given = Given(
                flags={key: values.pop(key) for key in from_settings},
                file=values.pop("config_file"),
                console=make_console(values.pop("as_json"), values.pop("quiet")),
            )
            del values["debug"], values["help_all"]  # the error boundary and the help page have seen to them
            check_texts(values)
            given.config()  # a wrong setting is told before anything is looked for
            if name in LOAD_A_MODEL or values.get("measure"):
                check_one_process(name)
                check_platform(name)
            function(**values, given=given)

        run.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *extra]}
        run.__doc__ = function.__doc__
        app.command(name, cls=CommandWithPages)(run)
        return function

    return register


def check_texts(values: Mapping[str, Any]) -> None:
    """Check a command's own texts, such as a prompt. Paths may have any bytes.

    Raises:
        UsageError: one is not UTF-8.
    """
    for name, value in values.items():
        if isinstance(value, str) and (problem := why_not_utf8(value)):
            raise UsageError(f"{settings.flag_of(name)} {problem}: {value}", "text has to be in UTF-8")


class Given:
    """What the user gave besides a command's own parameters. The file is read once: it may be a pipe."""

    def __init__(self, flags: Mapping[str, Any], file: Path | None, console: Console) -> None:
        self.flags = flags
        self.file = file and settings.read_settings(file)
        self.console = console

    @property
    def any_setting(self) -> bool:
        """Whether a setting was given, by flag or file."""
        return self.file is not None or any(value is not None for value in self.flags.values())

    def config(self, saved: Mapping[str, Any] | None = None) -> settings.Config:
        return settings.merged(self.flags, self.file or settings.FileSettings(), saved)


def make_console(as_json: bool, quiet: bool) -> Console:
    from llmft_cli.base import libraries
    from llmft_cli.cli.console import Console

    libraries.configure_libraries()
    return Console(as_json=as_json, quiet=quiet or as_json)
