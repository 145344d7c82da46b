"""How settings become flags, and functions with them commands; help pages grouped by topic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from llmft_cli.base.preconditions import check_one_process, check_platform
from llmft_cli.settings import config as settings
from llmft_cli.settings.setting import Command

if TYPE_CHECKING:
    from llmft_cli.cli.console import Console

WAITING = "Waiting for a free GPU"
FITTING = "Does a training fit (with --model or any setting below)"

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings, spelled like the flags.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No narration, no progress.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks (also LLMFT_DEBUG=1).")]
WaitOption = Annotated[
    str | None,
    typer.Option(
        "--wait",
        metavar="<time>",
        help="Wait so long (2h, 90m) for free GPUs and print their indices, for CUDA_VISIBLE_DEVICES, instead of the report; "
        "0 asks once. Exit 5 if none came free. Nothing is reserved.",
        rich_help_panel=WAITING,
        show_default=False,
    ),
]
MinFreeOption = Annotated[
    str | None,
    typer.Option(
        "--min-free",
        metavar="<size>",
        help="Free memory that a GPU must have, as in 20GiB. [default: 90% of its own]",
        rich_help_panel=WAITING,
        show_default=False,
    ),
]
MaxLoadOption = Annotated[
    str | None,
    typer.Option(
        "--max-load",
        metavar="<fraction>",
        help="Load that a GPU may have at most, 0.1 or 10%. [default: 0.1]",
        rich_help_panel=WAITING,
        show_default=False,
    ),
]
GpusOption = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="<int>",
        help="How many such GPUs. [default: 1]",
        rich_help_panel=WAITING,
        show_default=False,
    ),
]
VramOption = Annotated[
    str | None,
    typer.Option(
        "--vram",
        metavar="<size>",
        help="Answer for a card with this much free memory, as in 8GiB, instead of the one that is here.",
        rich_help_panel=FITTING,
        show_default=False,
    ),
]
FitRunOption = Annotated[
    Path | None,
    typer.Option("--run", help="Answer for the data of this run.", rich_help_panel=FITTING, show_default=False),
]
MeasureOption = Annotated[
    bool,
    typer.Option("--measure", help="Try the chosen plan on the GPU, with random weights.", rich_help_panel=FITTING),
]
GENERAL = {"as_json": JsonOption, "quiet": QuietOption, "debug": DebugOption}
LOAD_A_MODEL = {"train", "merge", "eval", "chat"}
TYPE_NAMES = {str: "<str>", int: "<int>", float: "<float>"}  # as Typer calls them


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under the headings of their panels, in full at any width.

    Typer's own panels cut long flags off (`--gradient-accumula...`) on a terminal of 80 columns.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None)
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(panel or default, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


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
            option = typer.Option(names, help=flag_help(item), rich_help_panel=rule.panel, show_default=False)
            flags[name] = Annotated[bool | None, option]
        else:
            metavar = TYPE_NAMES[item.type]
            option = typer.Option(flag, help=flag_help(item), metavar=metavar, rich_help_panel=rule.panel, show_default=False)
            flags[name] = Annotated[str | None, option]
    return flags


def flag_help(item: settings.Field) -> str:
    """Help text with the choices and the default, which Typer cannot know: to it, every flag defaults to not given."""
    text = item.setting.help
    if item.setting.choices:
        text += f" One of {', '.join(item.setting.choices)}."
    if item.default is None or item.default is False:
        return text
    default = "on" if item.default is True else f"{item.default:g}" if isinstance(item.default, float) else item.default
    return f"{text} [default: {default}]"


def command(app: typer.Typer, name: Command) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command with `app`: its own parameters, the flags of its settings, and --config, --json, --quiet, --debug.

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
        general: dict[str, Any] = {**({"config_file": ConfigOption} if from_settings else {}), **GENERAL}
        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False if key in GENERAL else None, annotation=kind)
            for key, kind in {**general, **from_settings}.items()
        ]

        def run(**values: Any) -> None:
            given = Given(
                flags={key: values.pop(key) for key in from_settings},
                file=values.pop("config_file", None),
                console=make_console(values.pop("as_json"), values.pop("quiet")),
            )
            values.pop("debug")
            given.config()  # a wrong setting is told before anything is looked for
            if name in LOAD_A_MODEL or values.get("measure"):
                check_one_process(name)
                check_platform(name)
            function(**values, given=given)

        run.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *extra]}
        run.__doc__ = function.__doc__
        app.command(name, cls=GroupedCommand)(run)
        return function

    return register


class Given:
    """What the user gave besides a command's own parameters."""

    def __init__(self, flags: Mapping[str, Any], file: Path | None, console: Console) -> None:
        self.flags = flags
        self.file = file
        self.console = console

    @property
    def any_setting(self) -> bool:
        """Whether a setting was given, by flag or file."""
        return self.file is not None or any(value is not None for value in self.flags.values())

    def config(self, saved: Mapping[str, Any] | None = None) -> settings.Config:
        return settings.resolve(self.flags, self.file, saved)


def make_console(as_json: bool, quiet: bool) -> Console:
    from llmft_cli.base import libraries
    from llmft_cli.cli.console import Console

    libraries.configure_libraries()
    return Console(as_json=as_json, quiet=quiet or as_json)
