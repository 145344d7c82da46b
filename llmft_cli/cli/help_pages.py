"""Help pages: a short one with examples and the options that people change, and a full one with all options.

A command's docstring is one sentence, then its examples below a line `Examples:`.
"""

from __future__ import annotations

from textwrap import wrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmft_cli.settings import config as settings
from llmft_cli.settings.quantities import format_count
from llmft_cli.settings.setting import AUTO

GENERAL = "General"  # on the short page, these are named without their help
OTHER = "Other"  # only on the full page
SETTINGS = "Settings"  # on a short page that has few of them
FEW_SETTINGS = 5
NAME_COLUMN = 26  # the most columns for names; a longer name has a line of its own
NO_BREAK_SPACE = "\u00a0"
Groups = dict[str, list[tuple[str, str]]]


class CommandWithPages(TyperCommand):
    """A command with a short help page (`--help`) and a full one (`--help-all`).

    Names of options are never cut off, as they are in Typer's own pages on a terminal of 80 columns.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        write_opening(self, ctx, formatter)
        parameters: list[Any] = self.get_params(ctx)
        shown = [parameter for parameter in parameters if self.is_primary(parameter)]
        fields = [field for parameter in shown if (field := setting_of(parameter, self.name))]
        groups: Groups = {}
        for parameter in shown:
            field = setting_of(parameter, self.name)
            heading = SETTINGS if field and len(fields) <= FEW_SETTINGS else panel_of(parameter)
            text = short_text(field, self.name) if field else short_own_text(parameter.help)
            groups.setdefault(heading, []).append((short_name_of(parameter, ctx), text))
        formatter.write_paragraph()
        write_groups(groups, formatter, between="")
        general = [parameter for parameter in parameters if panel_of(parameter) == GENERAL]
        names = ", ".join(parameter.opts[0] for parameter in general if not parameter.opts[0].startswith("--help"))
        more = len(parameters) - len(shown) - len(general)
        formatter.write_text(f"General: {names}. --help-all shows {format_count(more, 'more option')}.")

    def is_primary(self, parameter: Any) -> bool:
        """Whether the short page describes a parameter."""
        if field := setting_of(parameter, self.name):
            return self.name in field.setting.primary
        return panel_of(parameter) not in (GENERAL, OTHER)

    def write_full_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page with all options to `formatter`."""
        write_opening(self, ctx, formatter)
        groups: Groups = {}
        parameters: list[Any] = self.get_params(ctx)
        for parameter in parameters:
            field = setting_of(parameter, self.name)
            needed = field.setting.only_with.get(self.name) if field else None  # type: ignore[call-overload]
            heading = f"{panel_of(parameter)} (only with {needed})" if needed else panel_of(parameter)
            groups.setdefault(heading, []).append((name_of(parameter, ctx), parameter.help))
        last = {heading: groups.pop(heading) for heading in (OTHER, GENERAL) if heading in groups}
        formatter.write_paragraph()
        write_groups(groups | last, formatter, between="\n")


class GroupWithPages(TyperGroup):
    """llmft itself. Its `--help-all` shows the full pages of all commands, one after the other."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        write_opening(self, ctx, formatter)
        commands = [(name, opening_of(command)[0]) for name, command in self.commands.items()]
        parameters: list[Any] = self.get_params(ctx)
        options = [(name_of(parameter, ctx), parameter.help) for parameter in parameters]
        formatter.write_paragraph()
        write_groups({"Commands": commands}, formatter, between="")
        formatter.write_paragraph()
        write_groups({"Options": options}, formatter, between="")
        formatter.write_paragraph()
        formatter.write_text(self.epilog)

    def write_full_help(self, ctx: Any, formatter: Any) -> None:
        """Write the own page and those of all commands to `formatter`."""
        self.format_help(ctx, formatter)
        for name, command in self.commands.items():
            formatter.write(f"\n{'-' * formatter.width}\n\n")
            own = type(ctx)(command, info_name=name, parent=ctx)
            command.write_full_help(own, formatter)  # type: ignore[attr-defined]


def show_full_help(context: typer.Context, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:  # completion parses so
        return
    formatter = context.make_formatter()
    context.command.write_full_help(context, formatter)  # type: ignore[attr-defined]
    typer.echo(formatter.getvalue().rstrip("\n"))
    raise typer.Exit


def opening_of(command: Any) -> tuple[str, list[str]]:
    """What a command does, and its examples."""
    sentence, _, examples = command.help.partition("\n\nExamples:\n")
    return sentence, [line.strip() for line in examples.splitlines()]


def write_opening(command: Any, ctx: Any, formatter: Any) -> None:
    """Usage, what the command does, and the examples, which are never wrapped."""
    command.format_usage(ctx, formatter)
    sentence, examples = opening_of(command)
    formatter.write(f"\n{sentence}\n\nExamples:\n")
    formatter.write("".join(f"  {line}\n" for line in examples))


def write_groups(groups: Groups, formatter: Any, *, between: str) -> None:
    """Names and texts under their headings, in columns that are the same for all groups.

    Click's own lists break lines at the hyphens of `--gradient-checkpointing`.
    """
    names = [name for records in groups.values() for name, _ in records]
    column = max(len(name) for name in names if len(name) <= NAME_COLUMN) + 4
    blocks = []
    for heading, records in groups.items():
        lines = [f"{heading}:"]
        for name, text in records:
            # Click leaves two columns of the terminal free, of which one is enough.
            glued = text.replace("[default: ", f"[default:{NO_BREAK_SPACE}")
            lines_of_text = wrap(glued, formatter.width + 1 - column, break_on_hyphens=False)
            first, *others = (line.replace(NO_BREAK_SPACE, " ") for line in lines_of_text)
            start = f"  {name}"
            lines += [f"{start:{column}}{first}"] if len(start) < column - 1 else [start, f"{'':{column}}{first}"]
            lines += [f"{'':{column}}{line}" for line in others]
        blocks.append("".join(f"{line}\n" for line in lines))
    formatter.write(between.join(blocks))


def name_of(parameter: Any, ctx: Any) -> str:
    """What the first column has: the names of an option and what stands for its value, or the name of an argument."""
    return parameter.metavar if parameter.param_type_name == "argument" else parameter.get_help_record(ctx)[0]


def short_name_of(parameter: Any, ctx: Any) -> str:
    """As `name_of`, with `--[no-]packing` for `--packing / --no-packing`."""
    return f"--[no-]{parameter.opts[0][2:]}" if getattr(parameter, "secondary_opts", []) else name_of(parameter, ctx)


def panel_of(parameter: Any) -> str:
    """The heading of an option; that of `--help`, which Typer adds, is the general one."""
    return getattr(parameter, "rich_help_panel", None) or GENERAL


def setting_of(parameter: Any, command: str | None) -> settings.Field | None:
    """The setting that an option of a command sets, if it sets one."""
    field = settings.FIELDS.get(parameter.name)
    return field if field and command in field.setting.commands else None


def full_text(field: settings.Field) -> str:
    """Help text with the choices and the default, which Typer cannot know: to it, every flag defaults to not given."""
    one = "One or more of" if field.setting.is_list else "One of"
    choices = f" {one} {', '.join(field.setting.choices)}." if field.setting.choices else ""
    return f"{field.setting.help}{choices}{default_of(field)}"


def short_text(field: settings.Field, command: Any) -> str:
    """The first sentence, with the choices, and the default or what else the command needs to use the setting."""
    sentence = first_sentence(field.setting.help)
    if field.setting.choices and not field.setting.is_list:
        sentence = f"{sentence[:-1]}: {', '.join(field.setting.choices)}."
    needed = field.setting.only_with.get(command)
    return f"{sentence} Only with {needed}." if needed else f"{sentence}{default_of(field)}"


def default_of(field: settings.Field) -> str:
    if field.setting.auto:
        return f" [default: {AUTO}]"
    if field.default is None or field.default is False:
        return ""
    default = "on" if field.default is True else f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f" [default: {default}]"


def short_own_text(text: str) -> str:
    """The first sentence of the help of an option that sets no setting, and its default."""
    rest, bracket, default = text.partition(" [default: ")
    return f"{first_sentence(rest)}{bracket}{default}"


def first_sentence(text: str) -> str:
    return f"{text.partition('. ')[0].rstrip('.')}."
