"""gpu-check: wait for free GPUs, check the machine, or check whether a training run fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import UsageError
from llmft_cli.cli.run_argument import check_name
from llmft_cli.settings.config import Config
from llmft_cli.settings.quantities import format_size, parse_count, parse_flag, parse_size

if TYPE_CHECKING:
    from llmft_cli.cli.console import Console
    from llmft_cli.fit.target_gpu import TargetGpu
    from llmft_cli.run_dir.run import RunDir


@dataclass(frozen=True)
class Fitting:
    """A training run to check; `settings` returns the config, completed by a run's recorded settings."""

    settings: Callable[[Mapping[str, Any] | None], Config]
    vram: str | None
    run: Path | None
    measure: bool

    def run_dir(self) -> RunDir | None:
        from llmft_cli.run_dir.run import RunDir

        if self.run is None:
            return None
        check_name(self.run)
        return RunDir(self.run)

    def config(self) -> Config:
        run = self.run_dir()
        return self.settings(run.saved_settings("prepare") if run else None)


def wait(
    console: Console, time: str | None, min_free: str | None, max_load: str | None, gpus: str | None, fitting: Fitting | None
) -> None:
    """Wait for free GPUs, with enough memory for the training run if there is one, and print their indices.

    Raises:
        UsageError: --vram or --measure is set.
    """
    from llmft_cli.cli.views.gpu_wait import ready_sections
    from llmft_cli.gpu import waiting

    if fitting and (fitting.vram or fitting.measure):
        raise UsageError(
            "waiting (--wait, --min-free, --max-load) cannot be combined with --vram or --measure",
            "wait first, then run gpu-check on the free GPU",
        )
    wanted = waiting.read_wanted(time, min_free, max_load, gpus)
    if fitting and min_free is None:
        from llmft_cli.fit import fit

        need = fit.fit(fitting.config(), None, fitting.run_dir(), console)
        wanted = replace(wanted, min_free_bytes=fit.least_bytes(need))
    ready = waiting.wait_for_gpus(wanted, console)
    console.result("gpu-check", None, asdict(ready), ready_sections(ready))


def look(console: Console, require_gpu: bool, gpus: str | None, fitting: Fitting | None) -> None:
    """Check the machine, and whether the training run fits if there is one.

    Raises:
        MachineError: a GPU is required, and none computes correctly.
        OutOfMemory: the training run does not fit.
        UsageError: both --vram and --measure are set.
    """
    from llmft_cli.cli.views.gpu_check import report_sections
    from llmft_cli.gpu import check
    from llmft_cli.models.builtin import cache_dir
    from llmft_cli.run_dir.run import RUNS_ROOT

    if fitting and fitting.vram and fitting.measure:
        raise UsageError("--measure cannot be combined with --vram", "omit --vram to measure on the GPU of this machine")
    count = parse_flag(parse_count, gpus, "--gpus", "2") if gpus else 1
    card = named_gpu(fitting.vram) if fitting and fitting.vram else None
    report = check.check(console, cache_dir(), RUNS_ROOT)
    if require_gpu:
        check.require_gpu(report)
    values, sections = asdict(report), report_sections(report)
    if fitting is None:
        console.result("gpu-check", None, values, sections)
        return
    from llmft_cli.cli.views.fit import fit_sections
    from llmft_cli.fit import fit
    from llmft_cli.fit.target_gpu import freest_gpu

    found = fit.fit(
        fitting.config(),
        card or freest_gpu(report.gpus, report.probes, count),
        fitting.run_dir(),
        console,
        measure=fitting.measure,
    )
    if not (console.as_json and found.fits is False):  # with --json, the error includes the fit
        sections = fit_sections(found) if card else [*sections, *fit_sections(found)]
        console.result("gpu-check", None, values | {"fit": asdict(found)}, sections)
    fit.require_fit(found)


def named_gpu(vram: str) -> TargetGpu:
    from llmft_cli.fit.target_gpu import TargetGpu

    size = parse_flag(parse_size, vram, "--vram", "8GiB")
    return TargetGpu(f"a GPU with {format_size(size)}", size, None, None)
