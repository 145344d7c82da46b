"""Whether a training run fits, with which plan, and how long it takes: predicted from the model's config, or measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, MachineError, OutOfMemory
from llmft_cli.base.reporter import Reporter
from llmft_cli.fit.assumptions import sequences_of, settled
from llmft_cli.fit.host_resources import HostResources, host_resources
from llmft_cli.fit.target_gpu import TargetGpu, for_gpu, limit
from llmft_cli.models import random_model
from llmft_cli.models.config_lookup import shape_of
from llmft_cli.models.limits import limits_of, note_reduction, within_positions
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig

    from llmft_cli.run_dir.run import RunDir
    from llmft_cli.settings.compute_types import Abilities
    from llmft_cli.training.batches.sequences import Sequences
    from llmft_cli.training.plan import Plan
    from llmft_cli.training.planning.options import Option
    from llmft_cli.training.planning.simulation import BatchShape
    from llmft_cli.training.profiling.measuring import Measured

SHORTEST_LENGTH = 64


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
    """What gpu-check reports about a training run.

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
        rows_per_step: rows that an optimizer step learns from; None if sequences are counted.
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
    rows_per_step: int | None = None


@dataclass(frozen=True)
class Plans:
    """The plans that were considered for a training run.

    Attributes:
        model: on `meta`, without a plan.
        batch_of: the largest batch of a number of sequences.
        available_bytes: the GPU memory that the training may use; None without a limit.
        chosen: None if no plan fits.
    """

    model: PeftModel
    batch_of: Callable[[int], BatchShape]
    available_bytes: int | None
    options: list[Option]
    chosen: Option | None

    @property
    def best(self) -> Option:
        """The chosen plan, or the most frugal one if none fits."""
        return self.chosen or min(self.options, key=lambda option: option.required_bytes)


def fit(config: Config, gpu: TargetGpu | None, run: RunDir | None, reporter: Reporter, *, measure: bool = False) -> Fit:
    """Predict the memory, speed and time of a training run.

    Args:
        gpu: the GPU to fit; None means no limit.
        run: a prepared run, for its longest batch and number of tokens; without one, full batches are assumed.
        measure: whether to run the chosen plan on the GPU, with random weights.

    Raises:
        ModelError: the model's config cannot be obtained.
        ConfigError: these settings cannot be predicted, or do not suit the model.
        MachineError: there is no GPU to measure on.
    """
    from llmft_cli.training.loop import schedule
    from llmft_cli.training.planning.decide import filled

    check_request(config, gpu, measure)
    shape, weights_here = shape_of(config, reporter)
    config = settled(config if run else for_positions(config, shape, reporter), shape, run, reporter)
    sequences = sequences_of(run, config) if run else None
    config, able = for_gpu(filled(config, sequences), gpu, reporter)
    reporter.note(f"simulating training steps of {config.model}")
    plans = consider_plans(config, trainable(shape, config, "meta", able=able), sequences, gpu)
    measured = measure_plan(shape, config, plans, gpu, reporter) if measure and plans.chosen and gpu else None
    best, available, rates = plans.best, plans.available_bytes, gpu.rates if gpu else None
    tokens = schedule.training_tokens(sequences, config) if sequences and rates else None
    return Fit(
        model=config.model,
        fitting_length=None if plans.chosen or run else longest_that_fits(plans.model, config, available),
        fits=None if available is None else plans.chosen is not None,
        card=gpu.name if gpu else None,
        available_bytes=available,
        plan=asdict(best.plan),
        predicted_peak_bytes=best.breakdown.total,
        required_bytes=best.required_bytes,
        breakdown=asdict(best.breakdown),
        tokens_per_second=best.tokens_per_second if rates else None,
        training_seconds=None if tokens is None else tokens / best.tokens_per_second,
        measured=measured,
        footprint=host_resources_of(plans, config, weights_here),
        options=[plan_option(option, plans, measured_speed=rates is not None) for option in plans.options],
        tokens_per_batch=config.tokens_per_batch,
        rows_per_step=config.rows_per_step,
    )


def for_positions(config: Config, shape: PreTrainedConfig, reporter: Reporter) -> Config:
    """The settings with rows that the model has positions for.

    Raises:
        ConfigError: as `within_positions`.
    """
    limits = limits_of(shape, config.model)
    fitting = within_positions(config, limits, reporter)
    note_reduction(config, fitting, limits, reporter)
    return fitting


def consider_plans(config: Config, model: PeftModel, sequences: Sequences | None, gpu: TargetGpu | None) -> Plans:
    from llmft_cli.training.planning.decide import considered, longest_batches, worst_batches
    from llmft_cli.training.planning.options import choose
    from llmft_cli.training.planning.speed import REFERENCE_RATES

    batch_of = longest_batches(config) if sequences is None else worst_batches(sequences, config.tokens_per_batch)
    available = limit(gpu, config.max_vram)
    rates = gpu.rates if gpu else None
    options, kind = considered(model, config, batch_of, available, rates or REFERENCE_RATES)
    return Plans(model, batch_of, available, options, choose(options, available, kind))


def host_resources_of(plans: Plans, config: Config, weights_here: bool) -> HostResources:
    plan = plans.best.plan
    return host_resources(
        plans.model,
        replace(config, optim=plan.optim),
        weights_here=weights_here,
        offloaded_tokens=plans.batch_of(plan.batch_size).tokens if plan.activation_offloading else 0,
    )


def check_request(config: Config, gpu: TargetGpu | None, measure: bool) -> None:
    from llmft_cli.training.planning.decide import can_be_predicted
    from llmft_cli.training.planning.plan_files import check_choices

    check_choices(config)
    if not can_be_predicted(config):
        raise ConfigError(
            "the memory of --quantization int8, --use-dora and --trust-remote-code cannot be predicted",
            "omit them, or test with: llmft train --max-steps 1, which tries the longest batch first",
        )
    if measure and (gpu is None or gpu.device is None):
        raise MachineError("--measure needs a GPU, and there is none here", "omit --measure, or run it on a machine with a GPU")


def trainable(
    shape: PreTrainedConfig, config: Config, device: str, plan: Plan | None = None, able: Abilities | None = None
) -> PeftModel:
    """A model of the shape with an adapter: with random weights and a plan applied, or, on `meta`, without a plan.

    Args:
        able: the abilities of the GPU that `meta` stands for; None means all.
    """
    import torch

    from llmft_cli.training.step.tuned_model import apply_plan, make_trainable

    dtype = compute_types.torch_type(config.compute_dtype)
    base = random_model.build(shape, torch.device(device), config.quantization, dtype)
    model = make_trainable(base, config, config.model, able)
    if plan is not None:
        apply_plan(model, plan)
    return model


def longest_that_fits(model: PeftModel, config: Config, available_bytes: int | None) -> int | None:
    """Halve the sequence length until the most frugal plan fits, with one sequence per batch; None if none fits.

    If batches are filled by tokens, the requested length itself is tried first.
    """
    from llmft_cli.training.planning.decide import considered, longest_batches
    from llmft_cli.training.planning.speed import REFERENCE_RATES

    single = replace(config, batch_size=1, gradient_accumulation_steps=1, tokens_per_batch=None, plan="frugal")
    length = config.max_seq_length if config.tokens_per_batch else config.max_seq_length // 2
    while length >= SHORTEST_LENGTH:
        shorter = replace(single, max_seq_length=length)
        found, _kind = considered(model, shorter, longest_batches(shorter), available_bytes, REFERENCE_RATES)
        if any(option.fits(available_bytes) for option in found):
            return length
        length //= 2
    return None


def measure_plan(shape: PreTrainedConfig, config: Config, plans: Plans, gpu: TargetGpu, reporter: Reporter) -> Measured:
    """The chosen plan, tried on the GPU of this machine."""
    from llmft_cli.training.profiling import measuring

    assert gpu.device is not None
    reporter.note(f"building {config.model} with random weights on {gpu.name}")
    plan = plans.best.plan
    return measuring.measure(trainable(shape, config, gpu.device, plan), plans.batch_of(plan.batch_size), plan.optim)


def plan_option(option: Option, plans: Plans, measured_speed: bool) -> PlanOption:
    from llmft_cli.training.plan import PLAN_KINDS
    from llmft_cli.training.planning.options import choose

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
            f"{result.model} does not fit: the most frugal plan needs {needed}, but only {available} is available",
            mend,
            details={"fit": asdict(result)},
        )
