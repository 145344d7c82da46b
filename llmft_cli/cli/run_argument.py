"""Finds the run that a command works on."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import UsageError
from llmft_cli.base.reporter import Reporter
from llmft_cli.base.unicode_text import why_not_utf8

if TYPE_CHECKING:
    from llmft_cli.run_dir.run import RunDir

# A choice for the machine of one command. It is no part of what was trained.
OF_A_MACHINE = ("device", "compute_dtype")


def find_run(path: Path | None, reporter: Reporter) -> RunDir:
    """The named run, or the newest one, with a note.

    Raises:
        UsageError: the path is not UTF-8.
        StageError: none is named, and there is none.
    """
    from llmft_cli.run_dir.run import RunDir, newest

    if path is not None:
        check_name(path)
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
    check_name(run.path)
    check_place(run.path)
    return run


def check_name(run: Path) -> None:
    """Check that every library can read and write a run there.

    Raises:
        UsageError: its path is not UTF-8.
    """
    if problem := why_not_utf8(str(run)):
        raise UsageError(f"the run directory {run} {problem}", "choose a directory with a name in UTF-8")


def saved_settings(run: RunDir, *stages: str, here: tuple[str, ...] = OF_A_MACHINE) -> dict[str, Any]:
    """The settings of these stages that hold for later commands, too.

    Args:
        here: settings that only a flag or file of this command sets: another machine may have no GPU, or no such data type.
    """
    return {name: value for name, value in run.saved_settings(*stages).items() if name not in here}
