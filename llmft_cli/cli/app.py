"""The command line: parse, resolve the config, call, show. The only place where errors are shown.

Nothing heavy is imported here: every command imports what it needs when it runs, so that
`llmft --help` is quick.
"""

from __future__ import annotations

import sys

try:
    import os
    import signal
    import traceback
    from dataclasses import asdict
    from pathlib import Path
    from typing import Annotated

    import typer
    import typer.main

    from llmft_cli import __version__
    from llmft_cli.base.errors import Interrupted, LlmftError, UsageError, from_library_error, from_os_error, is_interrupt
    from llmft_cli.cli.flags import (
        FitRunOption,
        Given,
        GpusOption,
        MaxLoadOption,
        MeasureOption,
        MinFreeOption,
        VramOption,
        WaitOption,
        command,
    )
    from llmft_cli.cli.run_argument import find_run, run_to_prepare
except KeyboardInterrupt:  # Ctrl-C right after the start, when there is no error boundary yet
    sys.exit(130)

app = typer.Typer(
    name="llmft",
    help="Fine-tune a language model with QLoRA, and measure that it worked.",
    epilog="Every command takes --json, --quiet and --debug. Exit codes: 0 done, 1 a bug, 2 usage, 3 environment, "
    "4 data, 5 memory, 6 verification, 130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="Run directory; by default the newest under runs/.", show_default=False)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Do a finished stage again.")]
StaleOption = Annotated[bool, typer.Option("--allow-stale", help="Use stages whose inputs have changed since.")]


@command(app, "gpu-check")
def gpu_check(
    require_gpu: Annotated[
        bool, typer.Option("--require-gpu", help="Exit 3 unless there is a GPU that computes right.")
    ] = False,
    wait: WaitOption = None,
    min_free: MinFreeOption = None,
    max_load: MaxLoadOption = None,
    gpus: GpusOption = None,
    vram: VramOption = None,
    run: FitRunOption = None,
    measure: MeasureOption = False,
    *,
    given: Given,
) -> None:
    """Look at the machine, wait for a GPU, or tell what fits."""
    from llmft_cli.cli import gpu_check

    fitting = gpu_check.Fitting(given.config, vram, run, measure) if given.any_setting or vram or run or measure else None
    if any(value is not None for value in (wait, min_free, max_load)) or (gpus is not None and fitting is None):
        if require_gpu:
            raise UsageError("--require-gpu probes a GPU, --wait only waits for one", "run gpu-check once with each")
        gpu_check.wait(given.console, wait, min_free, max_load, gpus, fitting)
    else:
        gpu_check.look(given.console, require_gpu, gpus, fitting)


@command(app, "prepare")
def prepare(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Files (.json .jsonl .csv .tsv .parquet .arrow .txt .md, also .gz and .zst), directories, "
            "Hub dataset ids, or - for standard input.",
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run directory; by default a new one under runs/.", show_default=False)
    ] = None,
    preview: Annotated[
        int, typer.Option("--preview", min=0, max=24, help="Show so many rows as the model will see them, with the loss mask.")
    ] = 0,
    overwrite: OverwriteOption = False,
    *,
    given: Given,
) -> None:
    """Read, check, render, mask, tokenise, split and pack the data."""
    from llmft_cli.cli.views import stages
    from llmft_cli.data.prepare import prepare as prepare_data
    from llmft_cli.data.report.samples import read_samples

    target = run_to_prepare(run, data)
    result = prepare_data(target, data, given.config(), given.console, overwrite)
    samples = read_samples(target.data, preview)
    if samples:
        given.console.samples(samples)
    shown = {"preview": [asdict(sample) for sample in samples]} if preview else {}
    given.console.result("prepare", str(target.path), asdict(result) | shown, stages.prepare(str(target.path), result))


@command(app, "train")
def train(
    run: RunArgument = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Prepare this data first; may be repeated.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Tell where the time of a step goes, and leave a trace of two in RUN/profile.")
    ] = False,
    overwrite: OverwriteOption = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Train a LoRA adapter on the quantised model."""
    from llmft_cli.cli.views import stages
    from llmft_cli.data.prepare import prepare as prepare_data
    from llmft_cli.training.train import train as train_adapter

    if data:
        target = run_to_prepare(run, data)
        rows = prepare_data(target, data, given.config(), given.console, overwrite).rows
        given.console.note(f"prepared {target.path}: {rows['kept']} of {rows['read']} rows kept")
    else:
        target = find_run(run, given.console)
    saved = target.saved_settings(*(("prepare", "train") if resume else ("prepare",)))
    result = train_adapter(
        target,
        given.config(saved),
        given.console,
        overwrite=overwrite,
        resume=resume,
        allow_stale=allow_stale,
        profile=profile,
    )
    given.console.result("train", str(target.path), asdict(result), stages.train(str(target.path), result))


@command(app, "merge")
def merge(
    run: RunArgument = None, overwrite: OverwriteOption = False, allow_stale: StaleOption = False, *, given: Given
) -> None:
    """Fold the adapter into 16-bit weights, and prove it is the same."""
    from llmft_cli.cli.views import stages
    from llmft_cli.merging.merge import merge as merge_adapter

    target = find_run(run, given.console)
    config = given.config(target.saved_settings("prepare", "train"))
    result = merge_adapter(target, config, given.console, overwrite=overwrite, allow_stale=allow_stale)
    given.console.result("merge", str(target.path), asdict(result), stages.merge(str(target.path), result))


@command(app, "eval")
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
    from llmft_cli.cli.views import stages
    from llmft_cli.evaluation.evaluate import evaluate as evaluate_run

    target = find_run(run, given.console)
    config = given.config(target.saved_settings("prepare", "train"))
    result = evaluate_run(target, prompts, name, config, given.console, overwrite=overwrite, allow_stale=allow_stale)
    given.console.result("eval", str(target.path), asdict(result), stages.evaluate(str(target.path), result))


@command(app, "chat")
def chat(
    run: RunArgument = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Ask one question and exit.", show_default=False)] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.", show_default=False)] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Let the base model answer too.")] = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Talk to the tuned model, or ask it one thing with --prompt."""
    from llmft_cli.cli.console import ChatScreen, NoScreen
    from llmft_cli.serving.chat import Session, converse
    from llmft_cli.serving.generation import load_tuned

    console = given.console
    if console.as_json and prompt is None:
        raise UsageError("chat --json answers one question", "give it with --prompt")
    target = find_run(run, console)
    config = given.config(target.saved_settings("prepare", "train"))
    session = Session(target, load_tuned(target, config, console, allow_stale), config, compare)
    session.set_system(system or "")
    if prompt is None:
        converse(session, console.lines(), ChatScreen(console), interactive=sys.stdin.isatty())
        return
    reply = session.ask(prompt, NoScreen() if console.as_json else ChatScreen(console))
    values = {"reply": reply.text, "tokens": reply.tokens, "tokens_per_second": reply.tokens_per_second}
    console.result("chat", str(target.path), values, [])


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=show_version, is_eager=True)
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line and exit with its code: the one error boundary."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or os.environ.get("LLMFT_DEBUG") == "1"
    try:
        code = run_command(arguments)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        # From here on, another Ctrl-C ends the process at once instead of in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        known = as_llmft_error(error)
        if debug or known is None:
            traceback.print_exc()
        code = report(known or bug(error), "--json" in arguments)
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Parse and run a command line, without arguments the help; returns the exit code.

    Typer's own main would turn Ctrl-C and closed pipes into bare exits before we could tell of them.
    """
    root = typer.main.get_command(app)
    try:
        with root.make_context("llmft", list(arguments) or ["--help"]) as context:
            root.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code if arguments else UsageError.exit_code
    return 0


def as_llmft_error(error: BaseException) -> LlmftError | None:
    """The user's version of whatever ended a command, or None where it is a bug of ours."""
    if isinstance(error, LlmftError):
        return error
    if is_interrupt(error):
        return Interrupted("interrupted", "what was finished before is saved")
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        return UsageError(error.format_message(), f"see {context.command_path} --help" if context else "see --help")
    if isinstance(error, OSError) and (known := from_os_error(error)):
        return known
    return from_library_error(error)


def bug(error: BaseException) -> LlmftError:
    return LlmftError(f"{type(error).__name__}: {error}", "this is a bug of llmft; please report it with the lines above")


def report(error: LlmftError, as_json: bool) -> int:
    from llmft_cli.cli.console import Console

    Console(as_json=as_json).error(error)
    return error.exit_code
