"""All terminal output: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from llmft_cli.base.errors import LlmftError
from llmft_cli.base.reporter import Advance, Unit
from llmft_cli.base.unicode_text import replace_undecodable, why_not_utf8
from llmft_cli.cli.standard_streams import discard, is_reader_gone
from llmft_cli.cli.terminal import marked, marks, one_line, printable
from llmft_cli.cli.views.sections import Section, gibibytes

if TYPE_CHECKING:
    from llmft_cli.data.report.samples import Sample
    from llmft_cli.serving.generation import Reply


PIPE_WIDTH = 10_000  # lines are not wrapped in a pipe or file


class Stream(RichConsole):
    """rich's console, but a closed pipe raises an error for the error boundary; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise


class Console:
    """The output of one command.

    Args:
        as_json: print one JSON object on stdout, and nothing else there.
        quiet: no messages or progress, only results and errors.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                # Escape what the terminal's encoding cannot show as \\u....
                stream.reconfigure(errors="backslashreplace")
        self.out = Stream(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self.err = Stream(stderr=True, highlight=False, soft_wrap=True)

    # -- messages and progress, as a `Reporter`

    def note(self, message: str) -> None:
        if not self.quiet:
            self.err.print(Text(printable(message), style="dim"))

    def warn(self, message: str) -> None:
        self.err.print(Text(f"warning: {printable(message)}", style="yellow"))

    @contextmanager
    def track(self, description: str, total: int, done: int = 0, unit: Unit = "steps") -> Iterator[Advance]:
        """A progress bar on a terminal; elsewhere a plain line whenever there are new figures."""
        if self.quiet:
            yield lambda steps=1, **fields: None
        elif not self.err.is_terminal:
            yield PlainProgress(self, description, total, done)
        else:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn() if unit == "steps" else DownloadColumn(binary_units=True),
                TimeRemainingColumn(),
                FiguresColumn(),
            )
            with Progress(*columns, console=self.err, transient=True) as progress:
                task = progress.add_task(description, total=total, completed=done, figures={})

                def advance(steps: int = 1, **fields: float | int | None) -> None:
                    progress.advance(task, steps)
                    if fields:
                        progress.update(task, figures=fields)

                yield advance

    # -- results

    def result(self, command: str, run: str | None, values: Mapping[str, Any], sections: list[Section]) -> None:
        """A command's result: sections for people, or one JSON object."""
        if self.as_json:
            self.print_json({"ok": True, "command": command, "run": run, **values})
        else:
            for section in sections:
                # rich pads every line to the table's width.
                self.write("".join(line.rstrip() + "\n" for line in self._rendered(render(section)).splitlines()))

    def samples(self, samples: Sequence[Sample]) -> None:
        """Prepared rows with their loss mask on stdout; nothing with --json.

        On a terminal with colours, supervised text is bold green and special tokens are inverted.
        Elsewhere supervised text is between marks, which no other text can imitate (see `marked`).
        """
        if self.as_json:
            return
        colours = self.out.is_terminal and self.out.color_system is not None and not self.out.no_color
        opening, closing = marks(self.out.encoding)
        legend = "bold green; special tokens are inverted" if colours else f"between {opening} and {closing}"
        self.note(f"supervised text is {legend}")
        for sample in samples:
            place = one_line(f"{sample.source}:{sample.line} ({sample.split})")
            header = f"=== {place}: {sample.tokens:,} tokens, {sample.supervised:,} supervised"
            if colours:
                self.write(self._rendered(Text(header, style="bold"), coloured(sample), "", sep="\n", soft_wrap=True))
            else:
                # Not through rich, which converts tabs to spaces.
                self.write(f"{header}\n{marked(sample, opening, closing)}\n\n")

    def error(self, error: LlmftError) -> None:
        """Print the error and its hint on one line each, or as JSON on stdout."""
        if self.as_json:
            fields = {"kind": error.kind, "message": error.message, "hint": error.hint}
            self.print_json({"ok": False, "error": fields, **error.details})
            return
        self.err.print(Text.assemble(("error: ", "bold red"), one_line(error.message)))
        if error.hint:
            self.err.print(Text.assemble(("hint: ", "bold"), one_line(error.hint)))

    def print_json(self, value: Mapping[str, Any]) -> None:
        self.write(json.dumps(value, allow_nan=False) + "\n")

    def _rendered(self, *parts: Any, **options: Any) -> str:
        """What rich would print to stdout; its own capture writes to stdout, too, which may be closed."""
        shown = StringIO()
        console = RichConsole(file=shown, highlight=False, width=self.out.width, force_terminal=self.out.is_terminal)
        console.print(*parts, **options)
        return shown.getvalue()

    def write(self, text: str) -> None:
        """Print a part of a result, which is dropped if nobody reads it: the work is done.

        Raises:
            OSError: it cannot be written for another reason, such as a full disk.
        """
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            if not is_reader_gone(error):
                raise
            discard(sys.stdout)

    def lines(self) -> Iterator[str]:
        """The user's lines, prompted for on a terminal, until end of input. Bytes that are not UTF-8 are replaced."""
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        for line in self._typed_lines() if sys.stdin.isatty() else sys.stdin:
            if problem := why_not_utf8(line):
                self.warn(f"the line {problem}; what is not UTF-8 is replaced by \ufffd")
            yield replace_undecodable(line)

    def _typed_lines(self) -> Iterator[str]:
        with suppress(ImportError):
            import readline  # noqa: F401  gives input() editing and history
        self.note("type /help for a list of commands, /exit to quit")
        while True:
            if not sys.stdout.isatty():  # input() would write the prompt to stdout, among the answers
                self.err.print("> ", end="")
            try:
                line = input("> " if sys.stdout.isatty() else "")
            except (EOFError, OSError) as error:
                if isinstance(error, EOFError) or is_reader_gone(error):  # the terminal was closed
                    return
                raise
            yield line

    def raw(self, text: str) -> None:
        """Print text from a model on stdout as it arrives; control characters are escaped.

        Raises:
            OSError: nobody reads it, or it cannot be written.
        """
        sys.stdout.write(printable(text))
        sys.stdout.flush()


class PlainProgress:
    """Progress without a terminal: one line whenever there are new figures."""

    def __init__(self, console: Console, description: str, total: int, done: int) -> None:
        self._console = console
        self._description = description
        self._total = total
        self._done = done

    def __call__(self, steps: int = 1, **fields: float | int | None) -> None:
        self._done += steps
        if fields:
            self._console.note(f"{self._description} {self._done}/{self._total}  {figures_text(fields)}")


class FiguresColumn(ProgressColumn):
    """The latest figures of a task."""

    def render(self, task: Task) -> Text:
        return Text(figures_text(task.fields["figures"]))


class ChatScreen:
    """Prints a conversation."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def answer_begins(self, arm: str, label: bool) -> None:
        if label:
            self._console.out.print(Text(f"{arm}: ", style="bold"), end="")

    def text(self, piece: str) -> None:
        self._console.raw(piece)

    def answer_ends(self, reply: Reply) -> None:
        self._console.raw("\n")
        ending = "; cut at --max-new-tokens" if reply.cut else ""
        self._console.note(f"{reply.tokens} tokens, {reply.tokens_per_second:.1f} tokens/s{ending}")

    def say(self, message: str) -> None:
        self._console.note(message)


class NoScreen:
    """Prints nothing of a conversation, for --json."""

    def answer_begins(self, arm: str, label: bool) -> None: ...

    def text(self, piece: str) -> None: ...

    def answer_ends(self, reply: Reply) -> None: ...

    def say(self, message: str) -> None: ...


FIGURE_FORMATS = {
    "loss": "loss {:.4f}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tok/s",
    "peak_memory_bytes": "peak {}",
}


def figures_text(figures: Mapping[str, float | int | None]) -> str:
    parts = []
    for name, value in figures.items():
        if value is not None:
            shown = gibibytes(value) if name.endswith("_bytes") else value
            parts.append(FIGURE_FORMATS[name].format(shown))
    return "  ".join(parts)


def coloured(sample: Sample) -> Text:
    """A sample's text; special tokens are inverted, whether supervised or not."""
    text = Text()
    for segment in sample.segments:
        style = "bold green" if segment.supervised else "dim" if segment.special else ""
        text.append(printable(segment.text), style=f"{style} reverse" if segment.special else style)
    return text


def render(section: Section) -> Table:
    """A section as a table without borders; nothing is truncated or interpreted as markup."""
    table = Table(
        title=Text(printable(section.title), style="bold") if section.title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        show_header=bool(section.header),
    )
    for number, name in enumerate(section.header or ("", "")):
        figures = number > 0 and all(row[number][:1] in "-0123456789" for row in section.rows)
        table.add_column(name, style="" if number else "dim", justify="right" if figures else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
