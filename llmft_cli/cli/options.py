"""The commands' own arguments and options, which are not settings of a run, under their headings in the help.

Options under `OTHER` are only on the full help page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmft_cli.cli.completion import one_of, run_names
from llmft_cli.cli.help_pages import GENERAL, OTHER, show_full_help

RUN = "Run"
MACHINE = "Machine"
WAITING = "Wait for a free GPU"
FITTING = "Does training fit? (with any of these, or any setting)"

# -- of every command
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="<file>",
        help="YAML file of settings, named like the options. Options take precedence over the file.",
        rich_help_panel=GENERAL,
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.", rich_help_panel=GENERAL)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no notes and no progress.", rich_help_panel=GENERAL)]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Print tracebacks. LLMFT_DEBUG=1 does the same.", rich_help_panel=GENERAL)
]
FullHelpOption = Annotated[
    bool,
    typer.Option(
        "--help-all",
        help="Show all options and exit.",
        rich_help_panel=GENERAL,
        callback=show_full_help,
        is_eager=True,
    ),
]

# -- of several
RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="Run directory. [default: the newest under runs/]",
        rich_help_panel=RUN,
        show_default=False,
        autocompletion=run_names,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Run a finished stage again and replace its results.", rich_help_panel=RUN)
]
StaleOption = Annotated[
    bool,
    typer.Option("--allow-stale", help="Use earlier stages even if their inputs have changed since.", rich_help_panel=OTHER),
]

# -- of gpu-check
RequireGpuOption = Annotated[
    bool, typer.Option("--require-gpu", help="Exit with 3 unless a GPU works correctly.", rich_help_panel=MACHINE)
]
WaitOption = Annotated[
    str | None,
    typer.Option(
        "--wait",
        metavar="<time>",
        help="Wait this long (2h, 90m) for free GPUs. Print their indices for CUDA_VISIBLE_DEVICES instead of the report; "
        "exit 5 if none became free. 0 checks once. Nothing is reserved.",
        rich_help_panel=WAITING,
        show_default=False,
    ),
]
GpusOption = Annotated[
    str | None,
    typer.Option("--gpus", metavar="<int>", help="Number of GPUs. [default: 1]", rich_help_panel=WAITING, show_default=False),
]
MinFreeOption = Annotated[
    str | None,
    typer.Option(
        "--min-free",
        metavar="<size>",
        help="Free memory per GPU, as in 20GiB. [default: 90%]",
        rich_help_panel=WAITING,
        show_default=False,
    ),
]
MaxLoadOption = Annotated[
    str | None,
    typer.Option(
        "--max-load",
        metavar="<fraction>",
        help="Highest load of a free GPU. [default: 0.1]",
        rich_help_panel=WAITING,
        show_default=False,
    ),
]
VramOption = Annotated[
    str | None,
    typer.Option(
        "--vram",
        metavar="<size>",
        help="Free GPU memory, as in 8GiB. [default: this GPU's]",
        rich_help_panel=FITTING,
        show_default=False,
    ),
]
FitRunOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="<run>",
        help="Use this run's data and the settings it was prepared with. Its rows set the length, not --max-seq-length.",
        rich_help_panel=FITTING,
        show_default=False,
        autocompletion=run_names,
    ),
]
MeasureOption = Annotated[
    bool, typer.Option("--measure", help="Try the plan on the GPU, with random weights.", rich_help_panel=FITTING)
]

# -- of prepare
DataArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        help="Files, directories, Hub datasets, or - for stdin. Files may be .json, .jsonl, .csv, .tsv, .parquet, "
        ".arrow, .txt and .md, each also with .gz or .zst.",
        rich_help_panel=RUN,
    ),
]
NewRunOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="<run>",
        help="Run directory. [default: a new one under runs/]",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
PreviewOption = Annotated[
    int,
    typer.Option(
        "--preview",
        metavar="<rows>",
        min=0,
        max=24,
        help="Show this many rows with their loss mask. At most 24.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]

# -- of train
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="<source>",
        help="Prepare this file, directory or Hub dataset first. May be repeated. RUN is then the directory to create, "
        "by default a new one under runs/. Without --data, the model and the data settings are those of the prepared run.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an interrupted training run.", rich_help_panel=RUN)]
ContinueOption = Annotated[
    bool,
    typer.Option(
        "--continue",
        help="Train a finished run's adapter further. The settings are those of that training unless others are given. "
        "The adapter before is kept in RUN/earlier.",
        rich_help_panel=OTHER,
    ),
]
FromAdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--from-adapter",
        metavar="<path>",
        help="Start from this adapter instead of a new one: another run, or a PEFT directory. "
        "Its base model must be the run's; rank, alpha and target modules are the adapter's.",
        rich_help_panel=OTHER,
        show_default=False,
    ),
]
SearchOption = Annotated[
    int | None,
    typer.Option(
        "--search",
        metavar="<recipes>",
        min=2,
        help="Try this many recipes, and keep the best adapter. The first is the automatic recipe; the others have another "
        "learning rate, step size and length. The worse half is dropped along the way. What is set stays set.",
        rich_help_panel=OTHER,
        show_default=False,
    ),
]
SearchMetricOption = Annotated[
    str | None,
    typer.Option(
        "--search-metric",
        metavar="<metric>",
        help="What --search compares recipes by, on the held-out rows. eval_loss, or exact_match of the answers. "
        "[default: eval_loss]",
        rich_help_panel=OTHER,
        show_default=False,
        autocompletion=one_of(("eval_loss", "exact_match")),
    ),
]
TimingsOption = Annotated[
    bool,
    typer.Option("--timings", help="Show the wall time by stage, from the command on.", rich_help_panel=OTHER),
]
ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Report where the time of a step goes. Traces of two steps are saved in RUN/profile.",
        rich_help_panel=OTHER,
    ),
]
RequireImprovementOption = Annotated[
    bool,
    typer.Option(
        "--require-improvement",
        help="Exit with 6 unless the adapter's held-out loss is below that before training. The adapter is kept all the same.",
        rich_help_panel=OTHER,
    ),
]

# -- of eval
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="<file>",
        help="Prompt file (.txt, .jsonl). [default: the held-out rows]",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="<name>",
        help="Name of the result. [default: the prompt file's]",
        rich_help_panel=RUN,
        show_default=False,
    ),
]

# -- of chat
PromptOption = Annotated[
    str | None,
    typer.Option("--prompt", metavar="<text>", help="Ask one question and exit.", rich_help_panel=RUN, show_default=False),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="<text>", help="System message.", rich_help_panel=RUN, show_default=False)
]
CompareOption = Annotated[bool, typer.Option("--compare", help="Show the base model's answer, too.", rich_help_panel=RUN)]
