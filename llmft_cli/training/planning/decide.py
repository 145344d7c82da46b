"""Which plan a training takes: asked for by kind, read from a file, or spelled out by the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError, OutOfMemory
from llmft_cli.base.reporter import Reporter
from llmft_cli.models import random_model
from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.models.model_source import ModelSource
from llmft_cli.settings.compute_types import Abilities, torch_type
from llmft_cli.settings.config import Config
from llmft_cli.training.batches.token_batches import largest_batch, sequence_lengths, sequences_that_fill
from llmft_cli.training.device_memory import available_bytes
from llmft_cli.training.fast.kernels.select import abilities_of
from llmft_cli.training.plan import Plan, given_plan
from llmft_cli.training.planning.options import PLAN_KINDS, Option, Predictor, choose, options
from llmft_cli.training.planning.plan_files import read_plan
from llmft_cli.training.planning.simulation import BatchShape, CannotBeSimulated, full_batch
from llmft_cli.training.planning.speed import REFERENCE_RATES, Rates
from llmft_cli.training.step.tuned_model import computes_in_base_type, make_trainable

if TYPE_CHECKING:
    import datasets
    import torch
    from peft import PeftModel
    from transformers import PreTrainedConfig

AS_GIVEN = "given"
GIBIBYTE = 2**30


@dataclass(frozen=True)
class ChosenPlan:
    """The plan of a training, and what is predicted of it; None where it is not for a GPU or cannot be predicted."""

    plan: Plan
    predicted: Option | None = None

    def applied_to(self, config: Config) -> Config:
        """The settings with the plan's in place of the user's."""
        plan = self.plan
        return replace(
            config,
            batch_size=plan.batch_size,
            gradient_accumulation_steps=plan.gradient_accumulation_steps,
            optim=plan.optim,
            # What fits in training fits in evaluation.
            eval_batch_size=min(config.eval_batch_size, plan.batch_size) if self.predicted else config.eval_batch_size,
        )


def decide(
    source: ModelSource,
    config: Config,
    sequences: datasets.Dataset,
    device: torch.device,
    reporter: Reporter,
    recorded: Mapping[str, Any] | None = None,
) -> ChosenPlan:
    """How a training is laid out on the device.

    To be asked before anything is on the GPU.

    Args:
        recorded: the plan of the training that is resumed, whose optimizer stays: its state is of no use to another.

    Raises:
        ConfigError: `--plan` names no kind of plan and no plan file, or one with another optimizer than the training that is
            resumed, or the longest sequence has more tokens than a batch may.
        OutOfMemory: no plan fits.
    """
    from transformers import AutoConfig

    config = filled(config, sequences)
    if recorded:
        config = replace(config, optim=recorded["optim"])
    shape = AutoConfig.from_pretrained(source.path, trust_remote_code=config.trust_remote_code)
    if config.plan not in (*PLAN_KINDS, AS_GIVEN):
        return ChosenPlan(plan_in_file(config, resumed=bool(recorded)))
    on_gpu = device.type == "cuda"
    if config.plan == AS_GIVEN or not on_gpu or not can_be_predicted(config):
        return ChosenPlan(unplanned(config, shape, on_gpu))
    reporter.note("planning the memory of the GPU")
    available = available_bytes(device, config.max_vram)
    batch_of = worst_batches(sequences, config.tokens_per_batch)
    try:
        dtype = torch_type(config.compute_dtype)
        found = predicted_options(shape, config, dtype, batch_of, available, able=abilities_of(device))
    except CannotBeSimulated as error:
        reporter.note(f"memory is not planned, batches are as given: {error}")
        return ChosenPlan(unplanned(config, shape, on_gpu))
    if recorded:
        found = [option for option in found if option.plan.optim == recorded["optim"]]
    chosen = choose_plan(found, available, config)
    reporter.note(plan_notice(chosen, available, config.tokens_per_batch))
    return ChosenPlan(chosen.plan, chosen)


def unplanned(config: Config, shape: PreTrainedConfig, on_gpu: bool) -> Plan:
    """The settings as they are. Memory is what GPUs are short of; on a CPU recomputing only costs time."""
    checkpointing = on_gpu if config.gradient_checkpointing is None else config.gradient_checkpointing
    return given_plan(config, shape.get_text_config().num_hidden_layers, checkpointing)


def filled(config: Config, sequences: datasets.Dataset | None = None) -> Config:
    """The settings with the `batch_size` that `tokens_per_batch`, if given, amounts to: sequences as long as the longest.

    Args:
        sequences: those that the training has; without, the longest that the settings allow.

    Raises:
        ConfigError: not one such sequence fits.
    """
    if config.tokens_per_batch is None:
        return config
    longest = config.max_seq_length if sequences is None else max(sequence_lengths(sequences))
    return replace(config, batch_size=sequences_that_fill(config.tokens_per_batch, longest))


def plan_notice(option: Option, available_bytes: int, tokens_per_batch: int | None = None) -> str:
    """One line about a chosen plan."""
    plan = option.plan
    at_once = f"{plan.batch_size} sequences" if tokens_per_batch is None else f"{tokens_per_batch:,} tokens"
    embeddings = ", embeddings on the CPU" if plan.embeddings_on_cpu else ""
    weights = ", weights kept dequantised" if plan.dequantized_weights else ""
    offloaded = ", activations offloaded" if plan.activation_offloading else ""
    return (
        f"plan: {at_once} at once, {plan.gradient_accumulation_steps} times a step, "
        f"{plan.checkpointed_layers} layers checkpointed, {plan.optim}{embeddings}{weights}{offloaded}; needs about "
        f"{option.required_bytes / GIBIBYTE:.1f} of {available_bytes / GIBIBYTE:.1f} GiB"
    )


def predicted_options(
    shape: PreTrainedConfig,
    config: Config,
    dtype: torch.dtype,
    batch_of: Callable[[int], BatchShape],
    available_bytes: int | None,
    rates: Rates = REFERENCE_RATES,
    able: Abilities | None = None,
) -> list[Option]:
    """Plans for a model of this shape, with what each needs and how fast it is.

    Args:
        dtype: of the computation on the card.
        batch_of: the largest micro-batch of so many sequences.
        available_bytes: of the card; None asks for no limit.
        able: what the card can; None is all that there is.
    """
    import torch

    base = random_model.build(shape, torch.device("meta"), config.quantization, dtype)
    model = make_trainable(base, config, config.model, able)
    return options_of(model, config, batch_of, available_bytes, rates)


def options_of(
    model: PeftModel,
    config: Config,
    batch_of: Callable[[int], BatchShape],
    available_bytes: int | None,
    rates: Rates,
) -> list[Option]:
    """`options.options`; where batches are filled by tokens, those of this one micro-batch."""
    if config.tokens_per_batch is None:
        return list(options(model, config, batch_of, available_bytes, rates))
    batch = batch_of(config.batch_size)
    one_size = replace(config, batch_size=1, gradient_accumulation_steps=1)
    return [as_filled(option, config) for option in options(model, one_size, lambda size: batch, available_bytes, rates)]


def as_filled(option: Option, config: Config) -> Option:
    """The plan with the number of sequences and of passes that settings from `filled` say, whatever shape was followed."""
    passes = config.gradient_accumulation_steps
    return replace(option, plan=replace(option.plan, batch_size=config.batch_size, gradient_accumulation_steps=passes))


def considered(
    model: PeftModel, config: Config, batch_of: Callable[[int], BatchShape], available_bytes: int | None, rates: Rates
) -> tuple[list[Option], str]:
    """Plans, and the kind that is wanted of them; a plan that is spelled out is the only one."""
    if config.plan in PLAN_KINDS:
        return options_of(model, config, batch_of, available_bytes, rates), config.plan
    if config.plan == AS_GIVEN:
        plan = given_plan(config, len(decoder_layers(model)), config.gradient_checkpointing is not False)
    else:
        plan = plan_in_file(config, resumed=False)
    spelled = replace(
        config, batch_size=plan.batch_size, gradient_accumulation_steps=plan.gradient_accumulation_steps, optim=plan.optim
    )
    only = Predictor(model, spelled, batch_of(plan.batch_size), rates).predict(plan)
    return [as_filled(only, spelled)], PLAN_KINDS[0]


def can_be_predicted(config: Config) -> bool:
    """Whether a step of these settings can be followed on the `meta` device, which knows no autocast (int8, DoRA)."""
    return computes_in_base_type(config) and not config.trust_remote_code


def choose_plan(found: list[Option], available_bytes: int, config: Config) -> Option:
    """The plan of the wanted kind.

    Raises:
        OutOfMemory: none fits.
    """
    chosen = choose(found, available_bytes, config.plan)
    if chosen is not None:
        return chosen
    least = min(found, key=lambda option: option.required_bytes)
    raise OutOfMemory(
        f"{config.model} does not fit: the most frugal plan needs {least.required_bytes / GIBIBYTE:.2f} GiB "
        f"of {available_bytes / GIBIBYTE:.2f} GiB that are free",
        "use a smaller --max-seq-length, --lora-r or --model; see them with: llmft gpu-check --model "
        f"{config.model} (--plan given tries nevertheless)",
    )


def worst_batches(sequences: datasets.Dataset, tokens_per_batch: int | None = None) -> Callable[[int], BatchShape]:
    """The largest micro-batch of so many sequences of a split: as long, and with as many targets, as they come.

    With `tokens_per_batch` it is always that of so many tokens.
    """
    from llmft_cli.training.batches.largest import token_counts

    tokens, supervised = token_counts(sequences)
    if tokens_per_batch is not None:
        largest = largest_batch(tokens.tolist(), tokens_per_batch)
        within = sequences.select((tokens <= largest.length).nonzero()[0])
        return lambda size: replace(worst_batches(within)(largest.sequences), length=largest.length)
    most_supervised = sorted(supervised.tolist(), reverse=True)
    lengths = [length for lengths in sequences["row_lengths"] for length in lengths]
    longest_row = max(lengths)
    # Rows of one length with which attention costs as much as with the rows there are.
    rows = sum(length**2 for length in lengths) / len(sequences) / longest_row**2

    def batch_of(size: int) -> BatchShape:
        return BatchShape(size, int(tokens.max()), sum(most_supervised[:size]), max(size, round(rows * size)), longest_row)

    return batch_of


def longest_batches(config: Config) -> Callable[[int], BatchShape]:
    """Micro-batches filled to the longest sequence, or to the tokens, that the settings allow, everything supervised."""
    if config.tokens_per_batch is None:
        return lambda size: full_batch(size, config.max_seq_length)
    tokens = config.tokens_per_batch
    return lambda size: full_batch(size, tokens // size)


def plan_in_file(config: Config, resumed: bool) -> Plan:
    """The plan that `--plan` names a file of.

    Raises:
        ConfigError: it cannot be read, is no plan, or has another batch size than the tokens of a batch amount to, or
            another optimizer than the training that is resumed.
    """
    plan = read_plan(Path(config.plan))
    if resumed and plan.optim != config.optim:
        raise ConfigError(
            f"optim in {config.plan} is {plan.optim}, but the training that is resumed has the state of {config.optim}",
            f"write optim: {config.optim} there, or leave --plan out",
        )
    if config.tokens_per_batch is not None and plan.batch_size != config.batch_size:
        raise ConfigError(
            f"batch_size in {config.plan} is {plan.batch_size}, but --tokens-per-batch {config.tokens_per_batch} holds "
            f"{config.batch_size} of the longest sequences",
            f"write batch_size: {config.batch_size} there, or leave --tokens-per-batch out",
        )
    return plan
