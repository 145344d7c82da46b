"""The six commands: each resolves its config, calls the library, and shows the result.

Nothing heavy is imported here: every command imports what it needs when it runs, so that
`llmft --help` is quick. The docstring of a command is its help: a sentence, and examples.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from llmft_cli import __version__
from llmft_cli.base.errors import UsageError
from llmft_cli.cli.flags import Given, command
from llmft_cli.cli.help_pages import GroupWithPages, show_full_help
from llmft_cli.cli.options import (
    CompareOption,
    ContinueOption,
    DataArgument,
    DataOption,
    FitRunOption,
    FromAdapterOption,
    GpusOption,
    MaxLoadOption,
    MeasureOption,
    MinFreeOption,
    NameOption,
    NewRunOption,
    OverwriteOption,
    PreviewOption,
    ProfileOption,
    PromptOption,
    PromptsOption,
    RequireGpuOption,
    RequireImprovementOption,
    ResumeOption,
    RunArgument,
    SearchMetricOption,
    SearchOption,
    StaleOption,
    SystemOption,
    TimingsOption,
    VramOption,
    WaitOption,
)
from llmft_cli.cli.run_argument import find_run, run_to_prepare, saved_settings

app = typer.Typer(name="llmft", pretty_exceptions_enable=False, rich_markup_mode=None)


def show_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:  # completion parses so, too
        typer.echo(f"llmft {__version__}")
        raise typer.Exit


@app.callback(
    cls=GroupWithPages,
    epilog="Exit codes: 0 done, 1 bug, 2 usage, 3 environment, 4 data, 5 memory, 6 verification failed, 130 interrupted.",
)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
    help_all: Annotated[
        bool,
        typer.Option("--help-all", help="Show all options of all commands and exit.", callback=show_full_help, is_eager=True),
    ] = False,
) -> None:
    """Fine-tune a language model with QLoRA, and measure the result.

    Examples:
        llmft prepare chat.jsonl --model smollm2-135m  # read and check the data
        llmft train                                    # train on it
        llmft eval                                     # compare with the base model
    """


@command(app, "gpu-check")
def gpu_check(
    require_gpu: RequireGpuOption = False,
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
    """Check this machine, wait for a GPU, or see if training fits.

    Examples:
        llmft gpu-check                                   # report on this machine
        llmft gpu-check --model smollm2-135m --vram 8GiB  # does training fit?
        llmft gpu-check --wait 2h --min-free 20GiB        # wait for a free GPU
    """
    from llmft_cli.cli import gpu_check

    fitting = gpu_check.Fitting(given.config, vram, run, measure) if given.any_setting or vram or run or measure else None
    if any(value is not None for value in (wait, min_free, max_load)) or (gpus is not None and fitting is None):
        if require_gpu:
            raise UsageError("--require-gpu and --wait cannot be combined", "run gpu-check once with each")
        gpu_check.wait(given.console, wait, min_free, max_load, gpus, fitting)
    else:
        gpu_check.look(given.console, require_gpu, gpus, fitting)


@command(app, "prepare")
def prepare(
    data: DataArgument,
    run: NewRunOption = None,
    preview: PreviewOption = 0,
    overwrite: OverwriteOption = False,
    *,
    given: Given,
) -> None:
    """Check, tokenise and split training data.

    Examples:
        llmft prepare chat.jsonl --model smollm2-135m   # a new run under runs/
        llmft prepare chat.jsonl docs/ --run runs/mine  # two sources, a named run
        llmft prepare chat.jsonl --preview 3            # see what the model learns
    """
    from llmft_cli.cli.views import stages
    from llmft_cli.data.prepare import prepare as prepare_data
    from llmft_cli.data.report.samples import read_samples

    target = run_to_prepare(run, data)
    result = prepare_data(target, data, given.config(), given.console, overwrite, given.asks_for("max_seq_length"))
    samples = read_samples(target.data, preview)
    if samples:
        given.console.samples(samples)
    shown = {"preview": [asdict(sample) for sample in samples]} if preview else {}
    given.console.result("prepare", str(target.path), asdict(result) | shown, stages.prepare(str(target.path), result))


@command(app, "train")
def train(
    run: RunArgument = None,
    data: DataOption = None,
    resume: ResumeOption = False,
    continue_: ContinueOption = False,
    from_adapter: FromAdapterOption = None,
    search: SearchOption = None,
    search_metric: SearchMetricOption = None,
    require_improvement: RequireImprovementOption = False,
    profile: ProfileOption = False,
    timings: TimingsOption = False,
    overwrite: OverwriteOption = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Train a LoRA adapter on the quantised model.

    Examples:
        llmft train                                         # the newest run
        llmft train --data chat.jsonl --model smollm2-135m  # prepare, then train
        llmft train runs/mine --resume                      # after an interruption
    """
    from llmft_cli.cli import training

    target, result = training.train(
        run,
        data,
        training.Ways(resume, continue_, from_adapter, search, search_metric, overwrite, allow_stale, profile),
        given,
    )
    training.show(target.path, result, given.console, require_improvement, timings)


@command(app, "merge")
def merge(
    run: RunArgument = None, overwrite: OverwriteOption = False, allow_stale: StaleOption = False, *, given: Given
) -> None:
    """Merge the adapter into 16-bit weights, and verify the result.

    Examples:
        llmft merge                         # the newest run
        llmft merge runs/mine               # a named run
        llmft merge runs/mine --device cpu  # without a GPU
    """
    from llmft_cli.cli.views import stages
    from llmft_cli.merging.merge import merge as merge_adapter

    target = find_run(run, given.console)
    config = given.config(saved_settings(target, "prepare", "train"))
    result = merge_adapter(target, config, given.console, overwrite=overwrite, allow_stale=allow_stale)
    given.console.result("merge", str(target.path), asdict(result), stages.merge(str(target.path), result))


@command(app, "eval")
def evaluate(
    run: RunArgument = None,
    prompts: PromptsOption = None,
    name: NameOption = None,
    overwrite: OverwriteOption = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Compare the tuned model with its base model on the same prompts.

    Examples:
        llmft eval runs/mine                            # on the held-out rows
        llmft eval runs/mine --prompts questions.jsonl  # on your own prompts
    """
    from llmft_cli.cli.views import stages
    from llmft_cli.evaluation.evaluate import evaluate as evaluate_run

    target = find_run(run, given.console)
    config = given.config(saved_settings(target, "prepare", "train"))
    result = evaluate_run(target, prompts, name, config, given.console, overwrite=overwrite, allow_stale=allow_stale)
    given.console.result("eval", str(target.path), asdict(result), stages.evaluate(str(target.path), result))


@command(app, "chat")
def chat(
    run: RunArgument = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    compare: CompareOption = False,
    allow_stale: StaleOption = False,
    *,
    given: Given,
) -> None:
    """Chat with the tuned model, or ask it one question.

    Examples:
        llmft chat runs/mine                           # talk; Ctrl-D ends it
        llmft chat runs/mine --prompt "What is LoRA?"  # one answer
        llmft chat runs/mine --compare                 # the base model answers, too
    """
    from llmft_cli.cli.console import ChatScreen, NoScreen
    from llmft_cli.serving.chat import Session, converse
    from llmft_cli.serving.generation import load_tuned

    console = given.console
    if console.as_json and prompt is None:
        raise UsageError("chat --json needs a question", "give it with --prompt")
    target = find_run(run, console)
    config = given.config(saved_settings(target, "prepare", "train"))
    session = Session(target, load_tuned(target, config, console, allow_stale), config, compare)
    session.set_system(system or "")
    if prompt is None:
        converse(session, console.lines(), ChatScreen(console), interactive=sys.stdin.isatty())
        return
    reply = session.ask(prompt, NoScreen() if console.as_json else ChatScreen(console))
    values = {"reply": reply.text, "tokens": reply.tokens, "tokens_per_second": reply.tokens_per_second, "cut": reply.cut}
    console.result("chat", str(target.path), values, [])
