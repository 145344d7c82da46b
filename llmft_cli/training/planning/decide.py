"""The choice of a plan: by kind (`fast`, `balanced`, `frugal`), from a file, or from the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import OutOfMemory
from llmft_cli.base.reporter import Reporter
from llmft_cli.models.config_lookup import read_shape
from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.models.model_source import ModelSource
from llmft_cli.recipe.settle import counts_rows
from llmft_cli.settings.compute_types import Abilities, torch_type
from llmft_cli.settings.config import Config
from llmft_cli.settings.quantities import format_count
from llmft_cli.training.batches.token_batches import largest_batch, sequences_that_fill
from llmft_cli.training.device_memory import available_bytes
from llmft_cli.training.fast.kernels.select import abilities_of
from llmft_cli.training.plan import PLAN_KINDS, Plan, given_plan
from llmft_cli.training.planning.options import Option, Predictor, choose, options, sizes
from llmft_cli.training.planning.plan_cache import question, remembered
from llmft_cli.training.planning.plan_files import AS_GIVEN, plan_in_file
from llmft_cli.training.planning.planned_model import planned_model
from llmft_cli.training.planning.simulation import BatchShape, CannotBeSimulated, full_batch
from llmft_cli.training.planning.speed import REFERENCE_RATES, Rates
from llmft_cli.training.step.tuned_model import computes_in_base_type, make_trainable

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedConfig

    from llmft_cli.training.batches.sequences import SequenceFigures, Sequences

GIBIBYTE = 2**30
# More tokens per pass do not make a CPU faster, and attention between packed rows, which is masked there, costs their square.
UNPLANNED_TOKENS = 2048


@dataclass(frozen=True)
class ChosenPlan:
    """The plan of a training run.

    Attributes:
        predicted: None on a CPU, or if memory cannot be predicted.
        rows_of_longest: how many of the longest rows have the tokens of a pass.
    """

    plan: Plan
    predicted: Option | None = None
    rows_of_longest: int = 1

    def applied_to(self, config: Config) -> Config:
        """The settings with the plan's values."""
        plan = self.plan
        return replace(
            config,
            batch_size=plan.batch_size,
            gradient_accumulation_steps=plan.gradient_accumulation_steps,
            optim=plan.optim,
            # A batch that fits in training fits in evaluation.
            eval_batch_size=min(config.eval_batch_size, self.rows_of_longest) if self.predicted else config.eval_batch_size,
        )


def decide(
    source: ModelSource,
    config: Config,
    sequences: Sequences,
    device: torch.device,
    reporter: Reporter,
    recorded: Mapping[str, Any] | None = None,
) -> ChosenPlan:
    """Choose the plan of a training run; call it before anything is on the GPU.

    Args:
        recorded: the plan of the training to resume. Its optimizer is kept: another could not use its state.

    Raises:
        ConfigError: `--plan` is neither a kind of plan nor a plan file; the file has another optimizer than the training
            to resume; or the longest sequence has more tokens than a batch may have.
        OutOfMemory: no plan fits.
    """
    config = filled(config, sequences)
    if recorded:
        config = replace(config, optim=recorded.get("optim", config.optim))
    shape = read_shape(source.name, source.path, trust_remote_code=config.trust_remote_code)
    if config.plan not in (*PLAN_KINDS, AS_GIVEN):
        plan = plan_in_file(config, resumed=bool(recorded))
        reporter.note(f"plan of {config.plan}: {in_words(plan, config)}")
        return ChosenPlan(plan)
    on_gpu = device.type == "cuda"
    if config.plan == AS_GIVEN or not on_gpu or not can_be_predicted(config):
        return ChosenPlan(unplanned(config, shape, on_gpu, sequences))
    reporter.note("planning GPU memory")
    available = available_bytes(device, config.max_vram)
    batch_of = worst_batches(sequences, config.tokens_per_batch)
    try:
        found = remembered_options(shape, config, batch_of, available, abilities_of(device))
    except CannotBeSimulated as error:
        reporter.note(f"memory cannot be planned, using the batch settings as given: {error}")
        return ChosenPlan(unplanned(config, shape, on_gpu, sequences))
    if recorded:
        found = [option for option in found if option.plan.optim == config.optim]
    chosen = choose_plan(found, available, config)
    reporter.note(plan_notice(chosen, available, config))
    longest = max(1, batch_of(chosen.plan.batch_size).tokens // int(sequences.rows.lengths.max()))
    return ChosenPlan(chosen.plan, chosen, longest)


def unplanned(config: Config, shape: PreTrainedConfig, on_gpu: bool, sequences: Sequences) -> Plan:
    """The plan of the settings. Checkpointing is on by default on a GPU; on a CPU it would only cost time.

    Where rows are counted, a pass has as many of them as have at most `UNPLANNED_TOKENS`.
    """
    if config.rows_per_step is not None:
        batch_of, step = worst_batches(sequences), config.batch_size
        size = max((size for size in sizes(step) if batch_of(size).tokens <= UNPLANNED_TOKENS), default=1)
        config = replace(config, batch_size=size, gradient_accumulation_steps=step // size)
    checkpointing = on_gpu if config.gradient_checkpointing is None else config.gradient_checkpointing
    return given_plan(config, shape.get_text_config().num_hidden_layers, checkpointing)


def filled(config: Config, sequences: Sequences | None = None) -> Config:
    """The settings with the `batch_size` to plan with: how many of the longest sequences fill `tokens_per_batch`, if that is
    given, or the rows of a step, if they are counted.

    Args:
        sequences: of the training; without them, the longest that the settings allow is assumed.

    Raises:
        ConfigError: one sequence has more tokens than a batch may have.
    """
    if counts_rows(config) and (sequences is None or not config.packing):
        return replace(config, batch_size=config.rows_per_step, gradient_accumulation_steps=1)
    if sequences is not None and sequences.rows_per_step is not None:
        return replace(config, batch_size=sequences.rows_per_step, gradient_accumulation_steps=1)
    if config.tokens_per_batch is None:
        return config
    longest = config.max_seq_length if sequences is None else int(sequences.lengths.max())
    return replace(config, batch_size=sequences_that_fill(config.tokens_per_batch, longest))


def plan_notice(option: Option, available_bytes: int, config: Config) -> str:
    """One line about a chosen plan."""
    needs = f"needs about {option.required_bytes / GIBIBYTE:.1f} of {available_bytes / GIBIBYTE:.1f} GiB"
    return f"plan: {in_words(option.plan, config)}; {needs}"


def in_words(plan: Plan, config: Config) -> str:
    at_once = format_count(plan.batch_size, "row" if counts_rows(config) else "sequence")
    if config.tokens_per_batch is not None:
        at_once = f"{config.tokens_per_batch:,} tokens"
    layers = format_count(plan.checkpointed_layers, "layer")
    passes = format_count(plan.gradient_accumulation_steps, "pass", "passes")
    embeddings = ", embeddings on the CPU" if plan.embeddings_on_cpu else ""
    weights = ", weights kept dequantised" if plan.dequantized_weights else ""
    offloaded = ", activations offloaded" if plan.activation_offloading else ""
    return f"{at_once} per pass, {passes} per step, {layers} checkpointed, {plan.optim}{embeddings}{weights}{offloaded}"


def remembered_options(
    shape: PreTrainedConfig, config: Config, batch_of: Callable[[int], BatchShape], room: int | None, able: Abilities | None
) -> list[Option]:
    """`predicted_options` of the kind in the settings, from disk if they were predicted before."""
    dtype = torch_type(config.compute_dtype)
    return remembered(
        question(shape, config, batch_of, room, able),
        lambda: predicted_options(shape, config, dtype, batch_of, room, able=able, kind=config.plan),
    )


def predicted_options(
    shape: PreTrainedConfig,
    config: Config,
    dtype: torch.dtype,
    batch_of: Callable[[int], BatchShape],
    available_bytes: int | None,
    rates: Rates = REFERENCE_RATES,
    able: Abilities | None = None,
    kind: str | None = None,
) -> list[Option]:
    """Plans for a model of this shape, with their predicted memory and speed.

    Args:
        dtype: the type to compute in.
        batch_of: the largest micro-batch of a number of sequences.
        available_bytes: of GPU memory; None means no limit.
        able: the GPU's abilities; None means all.
        kind: as in `options.options`.
    """
    model = planned_model(shape, config, dtype, lambda base: make_trainable(base, config, config.model, able))
    return options_of(model, config, batch_of, available_bytes, rates, kind)


def options_of(
    model: PeftModel,
    config: Config,
    batch_of: Callable[[int], BatchShape],
    available_bytes: int | None,
    rates: Rates,
    kind: str | None = None,
) -> list[Option]:
    """`options.options`; if batches are filled by tokens, only for that one micro-batch."""
    if config.tokens_per_batch is None:
        return list(options(model, config, batch_of, available_bytes, rates, kind))
    batch = batch_of(config.batch_size)
    one_size = replace(config, batch_size=1, gradient_accumulation_steps=1)
    found = options(model, one_size, lambda size: batch, available_bytes, rates, kind)
    return [as_filled(option, config) for option in found]


def as_filled(option: Option, config: Config) -> Option:
    """The plan with the batch size and passes of settings from `filled`, whatever batch was simulated."""
    passes = config.gradient_accumulation_steps
    return replace(option, plan=replace(option.plan, batch_size=config.batch_size, gradient_accumulation_steps=passes))


def considered(
    model: PeftModel, config: Config, batch_of: Callable[[int], BatchShape], available_bytes: int | None, rates: Rates
) -> tuple[list[Option], str]:
    """Plans and the kind to choose from them; a plan from a file or from the settings is the only one."""
    if config.plan in PLAN_KINDS:
        return options_of(model, config, batch_of, available_bytes, rates), config.plan
    if config.plan == AS_GIVEN:
        plan = given_plan(config, len(decoder_layers(model)), config.gradient_checkpointing is not False)
    else:
        plan = plan_in_file(config, resumed=False)
    spelled = replace(
        config, batch_size=plan.batch_size, gradient_accumulation_steps=plan.gradient_accumulation_steps, optim=plan.optim
    )
    only = Predictor(model, spelled, batch_of(plan.batch_size), rates, plan.batch_size).predict(plan)
    return [as_filled(only, spelled)], PLAN_KINDS[0]


def can_be_predicted(config: Config) -> bool:
    """Whether a step can be simulated on `meta`, which does not support autocast (int8, DoRA)."""
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
        f"{config.model} does not fit: the most frugal plan needs {least.required_bytes / GIBIBYTE:.2f} GiB, "
        f"but only {available_bytes / GIBIBYTE:.2f} GiB is available",
        "use a smaller --max-seq-length, --lora-r or --model; list the plans with: llmft gpu-check --model "
        f"{config.model} (to try anyway: --plan given)",
    )


def worst_batches(sequences: Sequences, tokens_per_batch: int | None = None) -> Callable[[int], BatchShape]:
    """The largest micro-batch for a number of sequences, in any epoch: the longest, with the most targets.

    With `tokens_per_batch`, the batch always has that many tokens.
    """
    if (rows := sequences.rows_per_step) is not None:
        return lambda size: in_one_sequence(sequences.in_passes(rows // size).figures)
    figures = sequences.figures
    if tokens_per_batch is None:
        return lambda size: worst_batch(figures, size, int(figures.tokens.max()))
    largest = largest_batch(figures.tokens.tolist(), tokens_per_batch)
    within = figures.no_longer_than(largest.length)
    return lambda size: worst_batch(within, largest.sequences, largest.length)


def in_one_sequence(figures: SequenceFigures) -> BatchShape:
    return worst_batch(figures, 1, int(figures.tokens.max()))


def worst_batch(figures: SequenceFigures, size: int, length: int) -> BatchShape:
    """The micro-batch of `size` of these sequences with the most targets, padded to `length`."""
    import numpy

    longest_row = int(figures.longest_row.max())
    # Rows of equal length for which attention costs as much as for the real rows.
    rows = float(figures.squared_rows.mean()) / longest_row**2
    most_supervised = numpy.sort(figures.supervised)[-size:]
    return BatchShape(size, length, int(most_supervised.sum()), max(size, round(rows * size)), longest_row)


def longest_batches(config: Config) -> Callable[[int], BatchShape]:
    """Full micro-batches: of the longest sequences, or of the tokens, that the settings allow, all supervised."""
    if config.tokens_per_batch is None:
        return lambda size: full_batch(size, config.max_seq_length)
    tokens = config.tokens_per_batch
    return lambda size: full_batch(size, tokens // size)
