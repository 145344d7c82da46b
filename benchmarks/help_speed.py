"""How long `llmft --help` and `--help-all` take, against a bare Typer app with the same number of options.

    python benchmarks/help_speed.py [--runs 15] [--json FILE]

It writes a Typer app of one file, with as many options for every command and with shell completion as
llmft has it, to a temporary directory, and runs both in turn. The app's only page, `--help`, lists all
options; both pages of llmft are compared with it. Times are medians of whole processes, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import typer.main

from llmft_cli.cli.app import app

BAR = 1.25
BARE_APP = "import typer\n\napp = typer.Typer()\n"


def bare_app() -> str:
    """Source of a Typer app with the commands of llmft, each with as many arguments and options of the same types."""
    source = BARE_APP
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        lines = []
        for number, parameter in enumerate(command.params):
            if parameter.param_type_name == "argument":
                lines.append(f'    p{number}: str = typer.Argument(None, help="An argument."),\n')
            else:
                kind, default = ("bool", "False") if parameter.is_flag else ("str", "None")
                lines.append(f'    p{number}: {kind} = typer.Option({default}, "--option-{number}", help="An option."),\n')
        source += (
            f'\n\n@app.command("{name}")\ndef f{name.replace("-", "_")}(\n{"".join(lines)}) -> None:\n    """A command."""\n'
        )
    return source + "\n\napp()\n"


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def measure(ours: list[str], bare: list[str], runs: int) -> dict[str, float]:
    """Medians of both, run in turn after one run of each that is not counted."""
    seconds(ours), seconds(bare)
    pairs = [(seconds(ours), seconds(bare)) for _ in range(runs)]
    our_time, bare_time = (statistics.median(times) * 1000 for times in zip(*pairs, strict=True))
    return {"llmft_ms": our_time, "bare_typer_ms": bare_time, "ratio": our_time / bare_time}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of --help against a bare Typer app.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bare.py"
        file.write_text(bare_app(), encoding="utf-8")
        for command in ([], *([name] for name in typer.main.get_command(app).commands)):  # type: ignore[attr-defined]
            for page in ("--help", "--help-all"):
                ours = [str(Path(sys.executable).with_name("llmft")), *command, page]
                results[" ".join(["llmft", *command, page])] = measure(
                    ours, [sys.executable, str(file), *command, "--help"], options.runs
                )
    print(f"{'':28}{'llmft':>10}{'bare Typer':>12}{'ratio':>8}   (bar: {BAR})")
    for name, row in results.items():
        print(f"{name:28}{row['llmft_ms']:>7.0f} ms{row['bare_typer_ms']:>9.0f} ms{row['ratio']:>8.2f}")
    if options.json:
        environment = {
            "python": platform.python_version(),
            "typer": version("typer"),
            "rich": version("rich"),
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "runs": options.runs,
        }
        options.json.write_text(json.dumps({"environment": environment, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
