"""Does a training fit, with which plan, and how long will it take: told from the model's config alone, or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, MachineError, OutOfMemory
from llmft_cli.base.reporter import Reporter
from llmft_cli.fit.host_resources import Footprint, footprint
from llmft_cli.models import random_model
from llmft_cli.models.config_lookup import shape_of
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import datasets
    from peft import PeftModel
    from transformers import PreTrainedConfig

    from llmft_cli.gpu.gpus import Gpu
    from llmft_cli.gpu.probes import Probe
    from llmft_cli.run_dir import RunDir
    from llmft_cli.settings.compute_types import Abilities
    from llmft_cli.training.plan import Plan
    from llmft_cli.training.planning.options import Option
    from llmft_cli.training.planning.simulation import BatchShape
    from llmft_cli.training.planning.speed import Rates
    from llmft_cli.training.profiling.measuring import Measured

SHORTEST_LENGTH = 64


@dataclass(frozen=True)
class Card:
    """A GPU to fit into: what it has to give, and what it was measured to do, None where it is not here."""

    name: str
    available_bytes: int
    device: str | None
    rates: Rates | None


@dataclass(frozen=True)
class PlanOption:
    """A plan with what is predicted of it.

    Attributes:
        choices: the kinds of plan (`fast`, `balanced`, `frugal`) that it is chosen for.
        predicted_peak_bytes: most that torch allocates.
        required_bytes: all that the process takes of the card.
        fits: whether the card has that, None without a card.
        tokens_per_second: None where no card was measured.
    """

    choices: list[str]
    plan: dict[str, Any]
    predicted_peak_bytes: int
    required_bytes: int
    fits: bool | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Fit:
    """What gpu-check says of a training.

    Attributes:
        fits: whether the chosen plan fits on the card; None without a card.
        fitting_length: a `--max-seq-length` with which it would fit, where it does not.
        card: the GPU that it is about, None where there is none.
        available_bytes: what the training may take of it.
        plan, predicted_peak_bytes, required_bytes, breakdown, tokens_per_second: of the chosen plan, or of the
            most frugal one where none fits.
        training_seconds: for all steps on the run's data; None without a run, or where no card was measured.
        measured: the chosen plan with random weights on the card, with `--measure`.
        footprint: disk and RAM for training and merging.
        options: all plans that were considered.
        tokens_per_batch: what batches are filled with; None where they have a number of sequences.
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
    footprint: Footprint
    options: list[PlanOption]
    tokens_per_batch: int | None = None


def freest_card(gpus: Sequence[Gpu], probes: Sequence[Probe], count: int) -> Card | None:
    """The card that a training on `count` GPUs has to fit into: the last of the freest that torch sees; None if too few."""
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
    return Card(f"GPU {gpu.index}: {gpu.name}", gpu.memory_free_bytes or 0, gpu.device, rates)


def fit(config: Config, card: Card | None, run: RunDir | None, reporter: Reporter, *, measure: bool = False) -> Fit:
    """Predict the memory, speed and time of a training.

    Args:
        card: what it has to fit into; None asks for no limit.
        run: a prepared run, whose longest batch and number of tokens are taken; without one, batches are full.
        measure: whether to try the chosen plan on the card, with random weights.

    Raises:
        ModelError: the model's config cannot be had.
        ConfigError: what the settings ask for cannot be predicted.
        MachineError: something is to be measured and there is no GPU.
    """
    from llmft_cli.training.loop import schedule
    from llmft_cli.training.planning.decide import considered, filled, longest_batches, worst_batches
    from llmft_cli.training.planning.options import choose
    from llmft_cli.training.planning.speed import REFERENCE_RATES

    check_can_be_predicted(config)
    if measure and (card is None or card.device is None):
        raise MachineError("--measure needs a GPU, and there is none here", "leave --measure out, or run it where the GPU is")
    sequences = training_sequences(run) if run else None
    config, able = for_card(filled(config, sequences), card, reporter)
    shape, weights_here = shape_of(config, reporter)
    reporter.note(f"following training steps of {config.model}")
    model = trainable(shape, config, "meta", able=able)
    batch_of = longest_batches(config) if sequences is None else worst_batches(sequences, config.tokens_per_batch)
    available = limit(card, config.max_vram)
    rates = card.rates if card else None
    found, kind = considered(model, config, batch_of, available, rates or REFERENCE_RATES)
    chosen = choose(found, available, kind)
    best = chosen or min(found, key=lambda option: option.required_bytes)
    measured = None
    if measure and chosen and card and card.device:
        reporter.note(f"building {config.model} with random weights on {card.name}")
        measured = measure_plan(shape, config, chosen, batch_of(chosen.plan.batch_size), card.device)
    seconds = None
    if rates and sequences:
        seconds = schedule.training_tokens(sequences, config) / best.tokens_per_second
    return Fit(
        model=config.model,
        fitting_length=None if chosen or run else longest_that_fits(model, config, available),
        fits=None if available is None else chosen is not None,
        card=card.name if card else None,
        available_bytes=available,
        plan=asdict(best.plan),
        predicted_peak_bytes=best.breakdown.total,
        required_bytes=best.required_bytes,
        breakdown=asdict(best.breakdown),
        tokens_per_second=best.tokens_per_second if rates else None,
        training_seconds=seconds,
        measured=measured,
        footprint=footprint(
            model,
            replace(config, optim=best.plan.optim),
            weights_here=weights_here,
            offloaded_tokens=batch_of(best.plan.batch_size).tokens if best.plan.activation_offloading else 0,
        ),
        options=[described(option, found, available, measured_speed=rates is not None) for option in found],
        tokens_per_batch=config.tokens_per_batch,
    )


def for_card(config: Config, card: Card | None, reporter: Reporter) -> tuple[Config, Abilities | None]:
    """The settings with the type to compute in in place of `auto`, and what the GPU can; bf16 and None if it is not here."""
    import torch

    from llmft_cli.training.fast.kernels.select import abilities_of

    if card is not None and card.device is not None:
        device = torch.device(card.device)
        return compute_types.settled(config, device, reporter), abilities_of(device)
    is_auto = config.compute_dtype == compute_types.AUTO
    return replace(config, compute_dtype=compute_types.BF16) if is_auto else config, None


def limit(card: Card | None, max_vram: int | None) -> int | None:
    """Bytes that the training may take; None where nothing limits it."""
    if card is None:
        return max_vram
    return card.available_bytes if max_vram is None else min(card.available_bytes, max_vram)


def check_can_be_predicted(config: Config) -> None:
    from llmft_cli.training.planning.decide import can_be_predicted

    if not can_be_predicted(config):
        raise ConfigError(
            "the memory of --quantization int8, --use-dora and --trust-remote-code cannot be predicted",
            "leave them out, or try: llmft train --max-steps 1, whose longest batch goes first",
        )


def trainable(
    shape: PreTrainedConfig, config: Config, device: str, plan: Plan | None = None, able: Abilities | None = None
) -> PeftModel:
    """A model of the shape with an adapter, with random weights and laid out by a plan or, on `meta`, with none.

    Args:
        able: what the card can that `meta` stands for; None is all that there is.
    """
    import torch

    from llmft_cli.training.step.tuned_model import apply_plan, make_trainable

    dtype = compute_types.torch_type(config.compute_dtype)
    base = random_model.build(shape, torch.device(device), config.quantization, dtype)
    model = make_trainable(base, config, config.model, able)
    if plan is not None:
        apply_plan(model, plan)
    return model


def training_sequences(run: RunDir) -> datasets.Dataset:
    from llmft_cli.data.store import TRAIN, load_split

    run.require("prepare", allow_stale=False)
    sequences = load_split(run.data, TRAIN)
    assert sequences is not None
    return sequences


def longest_that_fits(model: PeftModel, config: Config, available_bytes: int | None) -> int | None:
    """The longest sequence with which the most frugal plan fits, among halves of the wanted one; None if none does.

    Where batches are filled by tokens, a single one at once may be enough of a change.
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


def measure_plan(shape: PreTrainedConfig, config: Config, option: Option, batch: BatchShape, device: str) -> Measured:
    from llmft_cli.training.profiling import measuring

    return measuring.measure(trainable(shape, config, device, option.plan), batch, option.plan.optim)


def described(option: Option, found: Sequence[Option], available: int | None, measured_speed: bool) -> PlanOption:
    from llmft_cli.training.planning.options import PLAN_KINDS, choose

    return PlanOption(
        choices=[kind for kind in PLAN_KINDS if choose(found, available, kind) is option],
        plan=asdict(option.plan),
        predicted_peak_bytes=option.breakdown.total,
        required_bytes=option.required_bytes,
        fits=None if available is None else option.fits(available),
        tokens_per_second=option.tokens_per_second if measured_speed else None,
    )


def least_bytes(result: Fit) -> int:
    """What the least demanding plan with the wanted optimizer takes of a card."""
    plain = [option for option in result.options if option.plan["optim"] == result.plan["optim"]]
    return min(option.required_bytes for option in plain)


def require_fit(result: Fit) -> None:
    """Hold that a plan fits.

    Raises:
        OutOfMemory: none does; with the fit itself as its details.
    """
    if result.fits is False:
        assert result.available_bytes is not None
        needed, available = (f"{size / 2**30:.2f} GiB" for size in (result.required_bytes, result.available_bytes))
        mend = "use a smaller --lora-r or --model, or a larger card"
        if length := result.fitting_length:
            batches = f" --tokens-per-batch {length}" if result.tokens_per_batch else ""
            mend = f"--max-seq-length {length}{batches} fits; or {mend}"
        raise OutOfMemory(
            f"{result.model} does not fit: the most frugal plan needs {needed}, and {available} can be had",
            mend,
            details={"fit": asdict(result)},
        )
