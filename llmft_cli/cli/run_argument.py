"""Finds the run that a command works on."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.base.reporter import Reporter

if TYPE_CHECKING:
    from llmft_cli.run_dir.run import RunDir


def find_run(path: Path | None, reporter: Reporter) -> RunDir:
    """The named run, or the newest one, with a note."""
    from llmft_cli.run_dir.run import RunDir, newest

    if path is not None:
        return RunDir(path)
    run = newest(reporter=reporter)
    reporter.note(f"using the newest run, {run.path}")
    return run


def run_to_prepare(path: Path | None, sources: list[str]) -> RunDir:
    """The named run, or a new one named after its data and the time; checks immediately that it can be created."""
    from llmft_cli.base.files import check_place
    from llmft_cli.run_dir.run import RUNS_ROOT, RunDir

    stem = Path(sources[0]).stem.encode(errors="ignore").decode() or "data"  # a file's name may not be UTF-8
    run = RunDir(path or RUNS_ROOT / f"{stem}-{datetime.now().strftime('%Y%m%d-%H%M%S')}")
    check_place(run.path)
    return run
