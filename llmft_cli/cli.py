"""The command line: parse, resolve the config, call, show. The only place where errors are shown.

Nothing heavy is imported here: every command imports what it needs when it runs, so that
`llmft --help` is quick.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmft_cli import __version__
from llmft_cli import config as settings
from llmft_cli.config import Command, Config
from llmft_cli.errors import Interrupted, LlmftError, UsageError, from_library_error, from_os_error

if TYPE_CHECKING:
    from llmft_cli.console import Console
    from llmft_cli.run_dir import RunDir

app = typer.Typer(
    name="llmft",
    help="Fine-tune a language model with QLoRA, and measure that it worked.",
    epilog="Every command takes --json, --quiet and --debug. Exit codes: 0 done, 2 usage, 3 environment, 4 data, 5 memory, 6 verification.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RunArgument = Annotated[
    Path | None, typer.Argument(help="Run directory; by default the newest under runs/.", show_default=False)
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings, spelled like the flags.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No narration, no progress.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks (also LLMFT_DEBUG=1).")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Do a finished stage again.")]
StaleOption = Annotated[bool, typer.Option("--allow-stale", help="Use stages whose inputs have changed since.")]
GENERAL = {"as_json": JsonOption, "quiet": QuietOption, "debug": DebugOption}


def settings_flags(command: Command) -> dict[str, Any]:
    """Typer annotations of the flags that set a command's settings, by field name."""
    flags: dict[str, Any] = {}
    for name, item in settings.FIELDS.items():
        rule = item.setting
        if command not in rule.commands:
            continue
        flag = settings.flag_of(name)
        names = f"{flag}/--no-{flag[2:]}" if item.type is bool and item.default is not False else flag
        option = typer.Option(names, help=flag_help(item), rich_help_panel=rule.panel, show_default=False)
        flags[name] = Annotated[(str if rule.parse else item.type) | None, option]
    return flags


def flag_help(item: settings.Field) -> str:
    """Help text with the choices and the default, which Typer cannot know: to it, every flag defaults to not given."""
    text = item.setting.help
    if item.setting.choices:
        text += f" One of {', '.join(item.setting.choices)}."
    if item.default is None or item.default is False:
        return text
    default = "on" if item.default is True else f"{item.default:g}" if isinstance(item.default, float) else item.default
    return f"{text} [dim]\\[default: {default}][/dim]"


def command(name: Command, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: its own parameters, the flags of its settings, and --config, --json, --quiet, --debug.

    The function gets its own parameters, and `given`: the settings from flags and file, to be
    completed by `Given.config`, and the console to show things on.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        flags = settings_flags(name)
        general: dict[str, Any] = {**({"config_file": ConfigOption} if flags else {}), **GENERAL}
        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False if key in GENERAL else None, annotation=kind)
            for key, kind in {**flags, **general}.items()
        ]

        def run(**values: Any) -> None:
            given = Given(
                flags={key: values.pop(key) for key in flags},
                file=values.pop("config_file", None),
                console=make_console(values.pop("as_json"), values.pop("quiet")),
            )
            values.pop("debug")
            function(**values, given=given)

        run.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *extra]}
        run.__doc__ = function.__doc__
        app.command(name, **options)(run)
        return function

    return register


class Given:
    """What the user gave besides a command's own parameters."""

    def __init__(self, flags: Mapping[str, Any], file: Path | None, console: Console) -> None:
        self.flags = flags
        self.file = file
        self.console = console

    def config(self, saved: Mapping[str, Any] | None = None) -> Config:
        return settings.resolve(self.flags, self.file, saved)


def make_console(as_json: bool, quiet: bool) -> Console:
    from llmft_cli import libraries
    from llmft_cli.console import Console

    libraries.calm()
    return Console(as_json=as_json, quiet=quiet or as_json)


def find_run(path: Path | None, console: Console) -> RunDir:
    """The run that was named, or the newest, which is then told."""
    from llmft_cli.run_dir import RunDir, newest

    if path is not None:
        return RunDir(path)
    run = newest()
    console.note(f"using the newest run, {run.path}")
    return run


def new_run(sources: list[str]) -> RunDir:
    """A run named after its data and the time."""
    from llmft_cli.run_dir import RUNS_ROOT, RunDir

    stem = Path(sources[0]).stem or "data"
    return RunDir(RUNS_ROOT / f"{stem}-{datetime.now().strftime('%Y%m%d-%H%M%S')}")


@command("gpu-check")
def gpu_check(
    require_gpu: Annotated[
        bool, typer.Option("--require-gpu", help="Exit 3 unless there is a GPU that computes right.")
    ] = False,
    *,
    given: Given,
) -> None:
    """Look at GPUs, versions, memory and disk, and try 4-bit weights for real."""
    from llmft_cli import gpu, views
    from llmft_cli.builtin_model import cache_dir
    from llmft_cli.run_dir import RUNS_ROOT

    report = gpu.check(given.console, cache_dir(), RUNS_ROOT)
    if require_gpu:
        gpu.require_gpu(report)
    given.console.result("gpu-check", None, asdict(report), views.gpu_check(report))


@command("prepare")
def prepare(
    data: Annotated[
        list[str], typer.Argument(help="Files (.json .jsonl .csv .parquet .txt), directories, or Hub dataset ids.")
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run directory; by default a new one under runs/.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    *,
    given: Given,
) -> None:
    """Read, check, render, mask, tokenise, split and pack the data."""
    from llmft_cli import views
    from llmft_cli.data.prepare import prepare as prepare_data
    from llmft_cli.run_dir import RunDir

    target = RunDir(run) if run else new_run(data)
    result = prepare_data(target, data, given.config(), given.console, overwrite)
    given.console.result("prepare", str(target.path), asdict(result), views.prepare(str(target.path), result))


@command("train")
def train(
    run: RunArgument = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Prepare this data first; may be repeated.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    overwrite: OverwriteOption = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Train a LoRA adapter on the quantised model."""
    from llmft_cli import views
    from llmft_cli.data.prepare import prepare as prepare_data
    from llmft_cli.run_dir import RunDir
    from llmft_cli.training.train import train as train_adapter

    if data:
        target = RunDir(run) if run else new_run(data)
        prepare_data(target, data, given.config(), given.console, overwrite)
    else:
        target = find_run(run, given.console)
    saved = target.saved_settings(*(("prepare", "train") if resume else ("prepare",)))
    result = train_adapter(
        target, given.config(saved), given.console, overwrite=overwrite, resume=resume, allow_stale=allow_stale
    )
    given.console.result("train", str(target.path), asdict(result), views.train(str(target.path), result))


@command("merge")
def merge(
    run: RunArgument = None, overwrite: OverwriteOption = False, allow_stale: StaleOption = False, *, given: Given
) -> None:
    """Fold the adapter into the 16-bit model, and prove that it is the same."""
    from llmft_cli import views
    from llmft_cli.merging import merge as merge_adapter

    target = find_run(run, given.console)
    config = given.config(target.saved_settings("prepare", "train"))
    result = merge_adapter(target, config, given.console, overwrite=overwrite, allow_stale=allow_stale)
    given.console.result("merge", str(target.path), asdict(result), views.merge(str(target.path), result))


@command("eval")
def evaluate(
    run: RunArgument = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Prompt file (.txt or .jsonl); by default the held-out rows.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of this evaluation; by default the prompt file's.")] = None,
    overwrite: OverwriteOption = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Compare the tuned model with its base on the same prompts."""
    from llmft_cli import views
    from llmft_cli.evaluation.evaluate import evaluate as evaluate_run

    target = find_run(run, given.console)
    config = given.config(target.saved_settings("prepare", "train"))
    result = evaluate_run(target, prompts, name, config, given.console, overwrite=overwrite, allow_stale=allow_stale)
    given.console.result("eval", str(target.path), asdict(result), views.evaluate(str(target.path), result))


@command("chat")
def chat(
    run: RunArgument = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask this one question and leave.", show_default=False)] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.", show_default=False)] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Let the base model answer too.")] = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Talk to the tuned model: interactively, with --prompt, or with lines piped in."""
    from llmft_cli.chat import Session, converse
    from llmft_cli.console import ChatScreen, NoScreen
    from llmft_cli.inference import load_tuned

    console = given.console
    if console.as_json and prompt is None:
        raise UsageError("chat --json answers one question", "give it with --prompt")
    target = find_run(run, console)
    config = given.config(target.saved_settings("prepare", "train"))
    session = Session(target, load_tuned(target, config, console, allow_stale), config, compare)
    session.set_system(system or "")
    if prompt is None:
        converse(session, console.lines(), ChatScreen(console))
        return
    reply = session.ask(prompt, NoScreen() if console.as_json else ChatScreen(console))
    values = {"reply": reply.text, "tokens": reply.tokens, "tokens_per_second": reply.tokens_per_second}
    console.result("chat", str(target.path), values, [])


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if show:
        typer.echo(f"llmft {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its code: the one error boundary."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or os.environ.get("LLMFT_DEBUG") == "1"
    try:
        code = app(standalone_mode=False)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        known = as_llmft_error(error)
        if debug or known is None:
            traceback.print_exc()
        code = report(known or bug(error), "--json" in arguments)
    sys.exit(code)


def as_llmft_error(error: BaseException) -> LlmftError | None:
    """The user's version of whatever ended a command, or None where it is a bug of ours."""
    if isinstance(error, LlmftError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted("interrupted", "what was finished before is saved")
    if isinstance(error, typer.TyperException):
        return UsageError(error.format_message(), "see --help")
    if isinstance(error, OSError) and (known := from_os_error(error)):
        return known
    return from_library_error(error) if isinstance(error, Exception) else None


def bug(error: BaseException) -> LlmftError:
    return LlmftError(f"{type(error).__name__}: {error}", "this is a bug of llmft; please report it with the lines above")


def report(error: LlmftError, as_json: bool) -> int:
    from llmft_cli.console import Console

    Console(as_json=as_json).error(error)
    return error.exit_code
