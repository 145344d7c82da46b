"""train: a new training, one that goes on, or a search; and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import UsageError
from llmft_cli.cli.run_argument import find_run, run_to_prepare, saved_settings

if TYPE_CHECKING:
    from llmft_cli.base.stage_times import StageTimes
    from llmft_cli.cli.console import Console
    from llmft_cli.cli.flags import Given
    from llmft_cli.run_dir.run import RunDir
    from llmft_cli.training.judgement.result import TrainResult


@dataclass(frozen=True)
class Ways:
    """How to train, as the options say it."""

    resume: bool
    continue_: bool
    from_adapter: Path | None
    search: int | None
    search_metric: str | None
    overwrite: bool
    allow_stale: bool
    profile: bool


def train(run: Path | None, data: list[str] | None, ways: Ways, given: Given) -> tuple[RunDir, TrainResult]:
    """Train the run, or a new one on `data`."""
    from llmft_cli.base.stage_times import StageTimes, process_started
    from llmft_cli.search.request import asked_search, check_metric
    from llmft_cli.search.search import search
    from llmft_cli.training.starting_adapter import starting_adapter
    from llmft_cli.training.train import train as train_adapter

    refuse_together({"--resume": ways.resume, "--continue": ways.continue_, "--from-adapter": ways.from_adapter})
    refuse_together({"--data": data, "--resume": ways.resume, "--continue": ways.continue_})
    for flag, value in (("--profile", ways.profile), ("--continue", ways.continue_), ("--from-adapter", ways.from_adapter)):
        refuse_together({"--search": ways.search, flag: value})
    check_metric(ways.search_metric, ways.search is not None or ways.resume)
    times = StageTimes("imports", process_started())
    target = prepared(run, data, given, ways, times) if data else find_run(run, given.console)
    start = starting_adapter(target, ways.continue_, ways.from_adapter)
    # A training that goes on keeps its data type, but not the device.
    stages = ["train"] if ways.resume or ways.continue_ else []
    saved = saved_settings(target, "prepare", *stages, here=("device",))
    config = given.config(saved | (start.settings if start else {}))
    kept: dict[str, Any] = {"overwrite": ways.overwrite, "resume": ways.resume, "allow_stale": ways.allow_stale, "times": times}
    if asked := asked_search(target, ways.search, ways.search_metric, ways.resume):
        if ways.profile:
            raise UsageError("--profile cannot be combined with a search, and this run's is resumed", "remove --profile")
        return target, search(target, config, given.console, asked, **kept)
    return target, train_adapter(target, config, given.console, start=start, profile=ways.profile, **kept)


def prepared(run: Path | None, data: list[str], given: Given, ways: Ways, times: StageTimes) -> RunDir:
    """The run of `train --data`, prepared."""
    from llmft_cli.data.prepare import prepare as prepare_data
    from llmft_cli.search.request import check_can_search, check_will_hold_out
    from llmft_cli.training.planning.preflight import check_settings

    check_settings(given.config())
    if ways.search:
        check_can_search(given.config())
        check_will_hold_out(given.config())
    target = run_to_prepare(run, data)
    with times.during("preparing"):
        rows = prepare_data(target, data, given.config(), given.console, ways.overwrite, given.asks_for("max_seq_length")).rows
    given.console.note(f"prepared {target.path}: {rows['kept']} of {rows['read']} rows kept")
    return target


def show(run: Path, result: TrainResult, console: Console, require_improvement: bool, timings: bool) -> None:
    """Show the result; raises VerificationError if an improvement is required and there is none (--json: with the result)."""
    from llmft_cli.cli.views import stages
    from llmft_cli.training.judgement import requirement

    if require_improvement and console.as_json:
        requirement.require_improvement(run, result)
    console.result("train", str(run), asdict(result), stages.train(str(run), result, timings))
    if require_improvement:
        requirement.require_improvement(run, result)


def refuse_together(flags: Mapping[str, object]) -> None:
    """Raises UsageError if more than one of these flags is given."""
    given = [flag for flag, value in flags.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} cannot be combined", f"remove {given[0]} or {given[1]}")
