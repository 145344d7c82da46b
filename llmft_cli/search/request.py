"""What the user asks of a search, and whether it can be done."""

from __future__ import annotations

from llmft_cli.base.errors import ConfigError, StageError, UsageError
from llmft_cli.data.store import VALIDATION, load_split
from llmft_cli.run_dir.run import RunDir
from llmft_cli.search.trials import EVAL_LOSS, METRICS, Asked
from llmft_cli.settings.config import Config
from llmft_cli.settings.setting import NONE


def check_metric(metric: str | None, searches: bool) -> None:
    """Check the metric that recipes are to be compared by.

    Args:
        searches: whether a search is asked for, or may be resumed.

    Raises:
        UsageError: there is no such metric, or it is given without a search.
    """
    if metric is not None and metric not in METRICS:
        raise UsageError(f"--search-metric is {metric}", f"it must be one of {', '.join(METRICS)}")
    if metric is not None and not searches:
        raise UsageError("--search-metric without --search", "add --search 8, or omit --search-metric")


def asked_search(run: RunDir, recipes: int | None, metric: str | None, resume: bool) -> Asked | None:
    """The search that is asked for, or recorded if a training is resumed; None for a plain training.

    Raises:
        ConfigError: it is not the search that is resumed.
        StageError: what is to be resumed is no search.
    """
    entry = run.entry("train") if resume else None
    if entry is None or entry["status"] == "done":
        return Asked(recipes, metric or EVAL_LOSS) if recipes is not None else None
    recorded = Asked(**entry["search"]) if "search" in entry else None
    if recorded is None and (recipes is not None or metric is not None):
        raise StageError(
            f"{run.path}: the interrupted training is no search", "omit --search, or replace --resume by --overwrite"
        )
    if recorded is not None:
        for flag, before, now in (("--search", recorded.recipes, recipes), ("--search-metric", recorded.metric, metric)):
            if now not in (None, before):
                raise ConfigError(
                    f"{flag} was {before} before the interruption and is {now} now",
                    f"omit {flag}, or start over with --overwrite",
                )
    return recorded


def check_can_search(config: Config) -> None:
    """Check the settings of a search; its data need not be prepared yet.

    Raises:
        ConfigError: one makes no sense in a search.
    """
    if config.report_to != NONE:
        raise ConfigError(
            f"--search does not report to trackers, and --report-to is {config.report_to}",
            "omit --report-to; the figures of each recipe will be in RUN/search",
        )


def check_will_hold_out(config: Config) -> None:
    """Check that rows will be held out of data that is not prepared yet.

    Raises:
        ConfigError: none will be.
    """
    if config.val_size == 0:
        raise ConfigError(
            "--search needs held-out rows, but --val-size is 0", "hold rows out, as with --val-size 10%, or omit --search"
        )


def check_held_out_rows(run: RunDir) -> None:
    """Check that rows of a prepared run are held out.

    Raises:
        StageError: there are none.
    """
    if load_split(run.data, VALIDATION) is None:
        raise StageError(
            f"{run.path} has no held-out rows to compare recipes on",
            f"prepare it again with some: {run.command_for('prepare')} --val-size 10% --overwrite",
        )
