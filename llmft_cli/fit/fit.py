"""Whether a training fits, with which plan, and how long it takes: predicted from the model's config, or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, MachineError, OutOfMemory
from llmft_cli.base.reporter import Reporter
from llmft_cli.fit.host_resources import HostResources
from llmft_cli.fit.plans import Plans, consider_plans, host_resources_of, longest_that_fits, measure_plan, trainable
from llmft_cli.models.config_lookup import shape_of
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import datasets

    from llmft_cli.gpu.gpus import Gpu
    from llmft_cli.gpu.probes import Probe
    from llmft_cli.run_dir import RunDir
    from llmft_cli.settings.compute_types import Abilities
    from llmft_cli.training.planning.options import Option
    from llmft_cli.training.planning.speed import Rates
    from llmft_cli.training.profiling.measuring import Measured


@dataclass(frozen=True)
class TargetGpu:
    """The GPU that a training must fit: its free memory, and its measured rates; `device` is None if it is not here."""

    name: str
    available_bytes: int
    device: str | None
    rates: Rates | None


@dataclass(frozen=True)
class PlanOption:
    """A plan and its predicted memory and speed.

    Attributes:
        choices: the kinds of plan (`fast`, `balanced`, `frugal`) that select it.
        predicted_peak_bytes: peak memory that torch allocates.
        required_bytes: total GPU memory of the process.
        fits: whether the GPU has that much memory; None without a GPU.
        tokens_per_second: None if no GPU was measured.
    """

    choices: list[str]
    plan: dict[str, Any]
    predicted_peak_bytes: int
    required_bytes: int
    fits: bool | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Fit:
    """What gpu-check reports about a training.

    Attributes:
        fits: whether any plan fits on the GPU; None without a GPU.
        fitting_length: if none fits, a `--max-seq-length` that does.
        card: the GPU's name, None without one.
        available_bytes: the GPU memory that the training may use.
        plan, predicted_peak_bytes, required_bytes, breakdown, tokens_per_second: of the chosen plan, or of the
            most frugal one if none fits.
        training_seconds: for all steps on the run's data; None without a run or a measured GPU.
        measured: with `--measure`, the chosen plan with random weights on the GPU.
        footprint: disk and RAM for training and merging.
        options: all plans that were considered.
        tokens_per_batch: as in the settings; None if batches have a fixed number of sequences.
    """

    model: str
    fits: bool | None
    fitting_length: int | None
    card: str | None
    available_bytes: int | None
    plan: dict[str, Any]
    predicted_peak_bytes: int
    required_bytes: int
    breakdown: dict[str, int]
    tokens_per_second: float | None
    training_seconds: float | None
    measured: Measured | None
    footprint: HostResources
    options: list[PlanOption]
    tokens_per_batch: int | None = None


def freest_gpu(gpus: Sequence[Gpu], probes: Sequence[Probe], count: int) -> TargetGpu | None:
    """Of torch's GPUs, the one with the `count`-th most free memory: training on `count` GPUs must fit it. None if too few."""
    from llmft_cli.training.planning.speed import Rates

    usable = [gpu for gpu in gpus if gpu.device is not None and gpu.memory_free_bytes is not None]
    usable.sort(key=lambda gpu: -(gpu.memory_free_bytes or 0))
    if len(usable) < count:
        return None
    gpu = usable[count - 1]
    rates = None
    for probe in probes:
        if probe.device == gpu.device and probe.flops_per_second and probe.bandwidth_bytes_per_second:
            rates = Rates(probe.flops_per_second, probe.bandwidth_bytes_per_second)
    return TargetGpu(f"GPU {gpu.index}: {gpu.name}", gpu.memory_free_bytes or 0, gpu.device, rates)


def fit(config: Config, gpu: TargetGpu | None, run: RunDir | None, reporter: Reporter, *, measure: bool = False) -> Fit:
    """Predict the memory, speed and time of a training.

    Args:
        gpu: the GPU to fit; None means no limit.
        run: a prepared run, for its longest batch and number of tokens; without one, full batches are assumed.
        measure: whether to run the chosen plan on the GPU, with random weights.

    Raises:
        ModelError: the model's config cannot be obtained.
        ConfigError: these settings cannot be predicted.
        MachineError: there is no GPU to measure on.
    """
    from llmft_cli.training.planning.decide import filled

    check_request(config, gpu, measure)
    sequences = training_sequences(run) if run else None
    config, able = for_gpu(filled(config, sequences), gpu, reporter)
    shape, weights_here = shape_of(config, reporter)
    reporter.note(f"simulating training steps of {config.model}")
    model, rates = trainable(shape, config, "meta", able=able), gpu.rates if gpu else None
    plans = consider_plans(config, model, sequences, limit(gpu, config.max_vram), rates)
    measured = None
    if measure and plans.chosen and gpu and gpu.device:
        reporter.note(f"building {config.model} with random weights on {gpu.name}")
        measured = measure_plan(shape, config, plans.chosen, plans.batch_of(plans.chosen.plan.batch_size), gpu.device)
    best, available = plans.best, plans.available_bytes
    return Fit(
        model=config.model,
        fitting_length=None if plans.chosen or run else longest_that_fits(model, config, available),
        fits=None if available is None else plans.chosen is not None,
        card=gpu.name if gpu else None,
        available_bytes=available,
        plan=asdict(best.plan),
        predicted_peak_bytes=best.breakdown.total,
        required_bytes=best.required_bytes,
        breakdown=asdict(best.breakdown),
        tokens_per_second=best.tokens_per_second if rates else None,
        training_seconds=training_seconds(sequences, config, best.tokens_per_second) if rates and sequences else None,
        measured=measured,
        footprint=host_resources_of(plans, config, weights_here),
        options=[plan_option(option, plans, measured_speed=rates is not None) for option in plans.options],
        tokens_per_batch=config.tokens_per_batch,
    )


def for_gpu(config: Config, gpu: TargetGpu | None, reporter: Reporter) -> tuple[Config, Abilities | None]:
    """The settings with `compute_dtype` resolved, and the GPU's abilities; bf16 and None if the GPU is not here."""
    import torch

    from llmft_cli.training.fast.kernels.select import abilities_of

    if gpu is not None and gpu.device is not None:
        device = torch.device(gpu.device)
        return compute_types.settled(config, device, reporter), abilities_of(device)
    is_auto = config.compute_dtype == compute_types.AUTO
    return replace(config, compute_dtype=compute_types.BF16) if is_auto else config, None


def limit(gpu: TargetGpu | None, max_vram: int | None) -> int | None:
    """GPU memory in bytes that the training may use; None without a limit."""
    if gpu is None:
        return max_vram
    return gpu.available_bytes if max_vram is None else min(gpu.available_bytes, max_vram)


def check_request(config: Config, gpu: TargetGpu | None, measure: bool) -> None:
    from llmft_cli.training.planning.decide import can_be_predicted

    if not can_be_predicted(config):
        raise ConfigError(
            "the memory of --quantization int8, --use-dora and --trust-remote-code cannot be predicted",
            "omit them, or test with: llmft train --max-steps 1, which tries the longest batch first",
        )
    if measure and (gpu is None or gpu.device is None):
        raise MachineError("--measure needs a GPU, and there is none here", "omit --measure, or run it on a machine with a GPU")


def training_sequences(run: RunDir) -> datasets.Dataset:
    from llmft_cli.data.store import TRAIN, load_split

    run.require("prepare", allow_stale=False)
    sequences = load_split(run.data, TRAIN)
    assert sequences is not None
    return sequences


def training_seconds(sequences: datasets.Dataset, config: Config, tokens_per_second: float) -> float:
    from llmft_cli.training.loop import schedule

    return schedule.training_tokens(sequences, config) / tokens_per_second


def plan_option(option: Option, plans: Plans, measured_speed: bool) -> PlanOption:
    from llmft_cli.training.planning.options import PLAN_KINDS, choose

    available = plans.available_bytes
    return PlanOption(
        choices=[kind for kind in PLAN_KINDS if choose(plans.options, available, kind) is option],
        plan=asdict(option.plan),
        predicted_peak_bytes=option.breakdown.total,
        required_bytes=option.required_bytes,
        fits=None if available is None else option.fits(available),
        tokens_per_second=option.tokens_per_second if measured_speed else None,
    )


def least_bytes(result: Fit) -> int:
    """The GPU memory of the most frugal plan with the requested optimizer."""
    plain = [option for option in result.options if option.plan["optim"] == result.plan["optim"]]
    return min(option.required_bytes for option in plain)


def require_fit(result: Fit) -> None:
    """Check that a plan fits.

    Raises:
        OutOfMemory: none does; its details contain the fit.
    """
    if result.fits is False:
        assert result.available_bytes is not None
        needed, available = (f"{size / 2**30:.2f} GiB" for size in (result.required_bytes, result.available_bytes))
        mend = "use a smaller --lora-r or --model, or a larger GPU"
        if length := result.fitting_length:
            batches = f" --tokens-per-batch {length}" if result.tokens_per_batch else ""
            mend = f"--max-seq-length {length}{batches} fits; or {mend}"
        raise OutOfMemory(
            f"{result.model} does not fit: the most frugal plan needs {needed}, available are {available}",
            mend,
            details={"fit": asdict(result)},
        )
