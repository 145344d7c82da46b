"""Which plan a training takes: asked for by kind, read from a file, or spelled out by the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli import model_shapes
from llmft_cli.config import Config
from llmft_cli.errors import ConfigError, OutOfMemory
from llmft_cli.models import ModelSource, compute_dtype
from llmft_cli.progress import Reporter
from llmft_cli.training.card import available_bytes
from llmft_cli.training.plans import Option, Plan, choose, given_plan, options
from llmft_cli.training.simulation import BatchShape, full_batch
from llmft_cli.training.speed import REFERENCE_RATES, Rates
from llmft_cli.training.tuned_model import computes_in_base_type, make_trainable

if TYPE_CHECKING:
    import datasets
    import torch
    from transformers import PreTrainedConfig

KINDS = ("fast", "balanced", "frugal")
AS_GIVEN = "given"
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Layout:
    """The plan of a training, and what is predicted of it where it is a GPU's and can be predicted."""

    plan: Plan
    option: Option | None = None

    def applied_to(self, config: Config) -> Config:
        """The settings with the plan's in place of the user's."""
        plan = self.plan
        return replace(
            config,
            batch_size=plan.batch_size,
            gradient_accumulation_steps=plan.gradient_accumulation_steps,
            optim=plan.optim,
            # What fits in training fits in evaluation.
            eval_batch_size=min(config.eval_batch_size, plan.batch_size) if self.option else config.eval_batch_size,
        )


def decide(
    source: ModelSource,
    config: Config,
    sequences: datasets.Dataset,
    device: torch.device,
    reporter: Reporter,
    recorded: Mapping[str, Any] | None = None,
) -> Layout:
    """How a training is laid out on the device.

    To be asked before anything is on the GPU.

    Args:
        recorded: the plan of the training that is resumed, whose optimizer stays: its state is of no use to another.

    Raises:
        ConfigError: `--plan` names no kind of plan and no plan file.
        OutOfMemory: no plan fits.
    """
    import torch
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(source.path, trust_remote_code=config.trust_remote_code)
    if config.plan not in (*KINDS, AS_GIVEN):
        return Layout(read_plan(Path(config.plan)))
    on_gpu = device.type == "cuda"
    if config.plan == AS_GIVEN or not on_gpu or not can_be_predicted(config) or compute_dtype(device) == torch.float16:
        # Memory is what GPUs are short of; on a CPU recomputing only costs time.
        checkpointing = on_gpu if config.gradient_checkpointing is None else config.gradient_checkpointing
        return Layout(given_plan(config, shape.get_text_config().num_hidden_layers, checkpointing))
    reporter.note("planning the memory of the GPU")
    available = available_bytes(device, config.max_vram)
    if recorded:
        config = replace(config, optim=recorded["optim"])
    found = predicted_options(shape, config, torch.bfloat16, worst_batches(sequences), available)
    if recorded:
        found = [option for option in found if option.plan.optim == recorded["optim"]]
    chosen = choose_plan(found, available, config)
    reporter.note(described(chosen, available))
    return Layout(chosen.plan, chosen)


def described(option: Option, available_bytes: int) -> str:
    """One line about a chosen plan."""
    plan = option.plan
    embeddings = ", embeddings on the CPU" if plan.embeddings_on_cpu else ""
    weights = ", weights kept dequantised" if plan.dequantized_weights else ""
    return (
        f"plan: {plan.batch_size} sequences at once, {plan.gradient_accumulation_steps} times a step, "
        f"{plan.checkpointed_layers} layers checkpointed, {plan.optim}{embeddings}{weights}; needs about "
        f"{option.required_bytes / GIBIBYTE:.1f} of {available_bytes / GIBIBYTE:.1f} GiB"
    )


def predicted_options(
    shape: PreTrainedConfig,
    config: Config,
    dtype: torch.dtype,
    batch_of: Callable[[int], BatchShape],
    available_bytes: int | None,
    rates: Rates = REFERENCE_RATES,
) -> list[Option]:
    """Plans for a model of this shape, with what each needs and how fast it is.

    Args:
        dtype: of the computation on the card.
        batch_of: the largest micro-batch of so many sequences.
        available_bytes: of the card; None asks for no limit.
    """
    import torch

    base = model_shapes.build(shape, torch.device("meta"), config.quantization, dtype)
    model = make_trainable(base, config, config.model, None)
    return list(options(model, config, batch_of, available_bytes, rates))


def can_be_predicted(config: Config) -> bool:
    """Whether a bf16 step of these settings can be followed on the `meta` device, which knows no autocast (int8, DoRA)."""
    import torch

    return computes_in_base_type(config, torch.bfloat16) and not config.trust_remote_code


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


def worst_batches(sequences: datasets.Dataset) -> Callable[[int], BatchShape]:
    """The largest micro-batch of so many sequences of a split: as long, and with as many targets, as they come."""
    from llmft_cli.training.rehearsal import token_counts

    tokens, supervised = token_counts(sequences)
    most_supervised = sorted(supervised.tolist(), reverse=True)
    lengths = [length for lengths in sequences["row_lengths"] for length in lengths]
    longest_row = max(lengths)
    # Rows of one length with which attention costs as much as with the rows there are.
    rows = sum(length**2 for length in lengths) / len(sequences) / longest_row**2

    def batch_of(size: int) -> BatchShape:
        return BatchShape(size, int(tokens.max()), sum(most_supervised[:size]), max(size, round(rows * size)), longest_row)

    return batch_of


def longest_batches(config: Config) -> Callable[[int], BatchShape]:
    """Micro-batches filled to the longest sequence that the settings allow, everything supervised."""
    return lambda size: full_batch(size, config.max_seq_length)


def read_plan(path: Path) -> Plan:
    """A plan from a YAML file, as `llmft gpu-check` prints it.

    Raises:
        ConfigError: it cannot be read, or is no plan.
    """
    import yaml

    needed = [field.name for field in fields(Plan) if field.default is MISSING]
    switches = [field.name for field in fields(Plan) if field.default is False]
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the plan {path}: {error}", f"--plan takes {', '.join(KINDS)} or a file") from error
    if not isinstance(content, Mapping) or set(content) - set(switches) != set(needed):
        raise ConfigError(
            f"{path} is not a plan: it must have {', '.join(needed)}, may have {', '.join(switches)}, and nothing else"
        )
    plan = Plan(**content)
    for name in switches:
        if not isinstance(getattr(plan, name), bool):
            raise ConfigError(f"{name} in {path}: {getattr(plan, name)!r} is neither true nor false")
    if not isinstance(plan.optim, str):
        raise ConfigError(f"optim in {path}: {plan.optim!r} is not the name of an optimizer")
    for name, value in asdict(plan).items():
        least = 0 if name == "checkpointed_layers" else 1
        # Not isinstance: True is an int, too.
        if name not in ("optim", *switches) and (type(value) is not int or value < least):
            raise ConfigError(f"{name} in {path}: {value!r} is not a whole number from {least} on")
    return plan
