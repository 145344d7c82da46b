"""How a training is laid out on a GPU: how much goes through at once, what is kept of it, and where the optimizer is.

The effective batch is the user's (`--batch-size` times `--gradient-accumulation-steps`), and so is
the loss; a plan says in how many passes it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.settings.config import Config
from llmft_cli.training.device_memory import CONTEXT_BYTES
from llmft_cli.training.fast import architectures
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.memory import Breakdown, assembled
from llmft_cli.training.planning.simulation import BatchShape
from llmft_cli.training.planning.speed import Rates, step_seconds
from llmft_cli.training.planning.step_costs import can_keep_dequantized, holdings_of, steps
from llmft_cli.training.step.cpu_embeddings import movable_embeddings

if TYPE_CHECKING:
    from peft import PeftModel

KINDS = ("fast", "balanced", "frugal")
# What torch's allocator, with expandable segments, takes from an H100 beyond the peak of what it gives out: 0.19 GiB
# for Llama-2-7B with 512 tokens at once, 0.21 with 2,048, 0.44 with 8,192, 0.72 with 16,384, and holes besides
# where fewer layers are checkpointed. So it goes with what a fully checkpointed step keeps: 0.3 to 7.4 GiB there.
RESERVE_BYTES = int(0.2 * 2**30)
RESERVE_SHARE = 0.1
# Recordings have a pool of their own: 0.25 to 0.36 GiB were idle or asked for at the peak of the first trainings, some of
# which ran out under the rule of the others. Under this one none of 42 did (benchmarks/results/memory-fast-h100.json).
RECORDED_RESERVE_BYTES = int(0.35 * 2**30)
# Plain layers dequantise each weight into memory of its own, which leaves holes between activations that are kept:
# up to 6% of them (0.50 GiB of 8.4 with 20 of 13B's 40 layers checkpointed, 1.69 of 31.7 with none, where the memory
# ran out). Fast layers use the same memory for all weights.
HOLES_SHARE = 0.055
FRUGAL_OPTIM = "paged_adamw_8bit"
BALANCED_SHARE = 0.75
HARDLY_FASTER = 0.01  # less than predictions of speed are worth
# Copies to the host and back go along with the computation: on an H100 they cost Llama-2-7B 0.5% to 1.3% of a step and
# SmolLM2-135M 1.2% (benchmarks/LOG.md). Taken as so much that nothing is offloaded where nothing has to be.
OFFLOADING_TIME = 1.013
# With more tokens in one pass, kernels gain nothing any more.
MOST_TOKENS = 2**16


@dataclass(frozen=True)
class Option:
    """A plan and what is predicted of it.

    Attributes:
        breakdown: of torch's peak.
        required_bytes: all that the process will hold of the card.
    """

    plan: Plan
    breakdown: Breakdown
    required_bytes: int
    tokens_per_second: float

    def fits(self, available_bytes: int | None) -> bool:
        return available_bytes is None or self.required_bytes <= available_bytes


def options(
    model: PeftModel,
    config: Config,
    batch_of: Callable[[int], BatchShape],
    available_bytes: int | None,
    rates: Rates,
) -> Iterator[Option]:
    """Plans worth considering, from small batches to large, until nothing fits any more.

    Args:
        model: as `tuned_model.make_trainable` leaves it, on the `meta` device.
        batch_of: the largest micro-batch of so many sequences.
        available_bytes: of the card; None asks for no limit.
    """
    layers = len(decoder_layers(model))
    fast_layers = bool(architectures.blocks_of(model))
    can = Can(movable_embeddings(model) is not None, can_keep_dequantized(model), fast_layers)
    for size in sizes(config.batch_size * config.gradient_accumulation_steps):
        batch = batch_of(size)
        if size > 1 and batch.tokens > MOST_TOKENS:
            return
        found = list(of_one_size(option_of(model, config, batch, rates), layers, config, available_bytes, can))
        yield from found
        if not any(one.fits(available_bytes) for one in found):
            return


@dataclass(frozen=True)
class Can:
    """Whether a model's embeddings can be on the CPU, its weights kept dequantised, and layers' inputs offloaded."""

    move_embeddings: bool
    keep_dequantized: bool
    offload_activations: bool


class OptionOf(Protocol):
    """The plan with so many checkpointed layers, an optimizer, and the switches of `Plan`."""

    def __call__(
        self,
        checkpointed: int,
        optim: str,
        embeddings_on_cpu: bool = False,
        dequantized_weights: bool = False,
        activation_offloading: bool = False,
    ) -> Option: ...


def option_of(model: PeftModel, config: Config, batch: BatchShape, rates: Rates) -> OptionOf:
    """Plans with this micro-batch."""
    step_of = steps(model, batch)
    passes = config.batch_size * config.gradient_accumulation_steps // batch.sequences
    layers = len(decoder_layers(model))
    fast_layers, keepable = bool(architectures.blocks_of(model)), can_keep_dequantized(model)
    held = {kept: holdings_of(model, kept) for kept in (False, True) if keepable or not kept}

    def option(
        checkpointed: int,
        optim: str,
        embeddings_on_cpu: bool = False,
        dequantized_weights: bool = False,
        activation_offloading: bool = False,
    ) -> Option:
        kept = dequantized_weights and keepable
        offloading = activation_offloading and fast_layers and checkpointed == layers and not kept
        step = step_of(checkpointed, kept, offloading)
        breakdown = assembled(held[kept], step, optim, embeddings_on_cpu)
        recorded = held[kept].is_recorded(embeddings_on_cpu)
        required = required_bytes(breakdown, step_of(layers).activation_bytes, fast_layers, recorded)
        seconds = step_seconds(step, rates, packed=batch.rows > batch.sequences, recorded=recorded)
        if offloading:
            seconds *= OFFLOADING_TIME
        plan = Plan(batch.sequences, passes, checkpointed, optim, embeddings_on_cpu, kept, offloading)
        return Option(plan, breakdown, required, batch.tokens / seconds)

    return option


def of_one_size(option: OptionOf, layers: int, config: Config, available_bytes: int | None, can: Can) -> Iterator[Option]:
    """Without checkpointing, with as little as fits, with all of it, with its activations offloaded, and at the least.

    The first two with weights kept dequantised before, and as they are.
    """
    if config.gradient_checkpointing is not True:
        for kept in (True, False) if can.keep_dequantized else (False,):
            free = option(0, config.optim, dequantized_weights=kept)
            yield free
            if config.gradient_checkpointing is None and not free.fits(available_bytes):
                yield from fewest_checkpointed(option, layers, config.optim, available_bytes, kept)
        if config.gradient_checkpointing is False:
            yield from frugal(option, 0, config, replace(can, offload_activations=False))
            return
    yield option(layers, config.optim)
    if can.offload_activations:
        yield option(layers, config.optim, activation_offloading=True)
    yield from frugal(option, layers, config, can)


def frugal(option: OptionOf, checkpointed: int, config: Config, can: Can) -> Iterator[Option]:
    """With all that can be offloaded and an optimizer in 8 bits, and with the embeddings on the CPU besides."""
    if config.optim != FRUGAL_OPTIM:
        yield option(checkpointed, FRUGAL_OPTIM, activation_offloading=can.offload_activations)
    if can.move_embeddings:
        yield option(checkpointed, FRUGAL_OPTIM, embeddings_on_cpu=True, activation_offloading=can.offload_activations)


def fewest_checkpointed(
    option: OptionOf, layers: int, optim: str, available_bytes: int | None, dequantized_weights: bool = False
) -> Iterator[Option]:
    """The plan with the fewest checkpointed layers that fits, if one does with less than all of them."""
    low, high = 0, layers
    while high - low > 1:
        middle = (low + high) // 2
        fits = option(middle, optim, dequantized_weights=dequantized_weights).fits(available_bytes)
        low, high = (low, middle) if fits else (middle, high)
    if high < layers:
        yield option(high, optim, dequantized_weights=dequantized_weights)


def sizes(effective_batch: int) -> list[int]:
    """Micro-batches that divide the effective batch."""
    return [size for size in range(1, effective_batch + 1) if effective_batch % size == 0]


def required_bytes(
    breakdown: Breakdown, checkpointed_bytes: int | None = None, fast_layers: bool = False, recorded: bool = False
) -> int:
    """What a process takes of the card: torch's peak, what its allocator cannot give out, and the context.

    Args:
        checkpointed_bytes: activations of the step with every layer checkpointed; None where the breakdown's is that one.
        fast_layers: whether weights are dequantised into memory that they share.
        recorded: whether passes are replayed as CUDA graphs.
    """
    passing = RESERVE_SHARE * (breakdown.activations if checkpointed_bytes is None else checkpointed_bytes)
    holes = 0 if fast_layers else HOLES_SHARE * breakdown.activations
    least = RECORDED_RESERVE_BYTES if recorded else RESERVE_BYTES
    return breakdown.total + least + int(max(passing, holes)) + CONTEXT_BYTES


def choose(found: Sequence[Option], available_bytes: int | None, kind: str) -> Option | None:
    """The plan of a kind among those that fit, or None where none does.

    Args:
        kind: `fast` is the fastest; `balanced` the fastest in three quarters of the card; `frugal` holds the least.
    """
    fitting = [one for one in found if one.fits(available_bytes)]
    if not fitting:
        return None
    if kind == "frugal":
        return min(fitting, key=lambda one: one.required_bytes)
    if kind == "balanced" and available_bytes is not None:
        roomy = [one for one in fitting if one.required_bytes <= BALANCED_SHARE * available_bytes]
        return fastest(roomy) if roomy else choose(found, available_bytes, "frugal")
    return fastest(fitting)


def fastest(found: Sequence[Option]) -> Option:
    """Of the plans that do with the least sacrifice.

    An optimizer in 8 bits changes the training a little, so it is taken only where no other plan fits, and
    embeddings on the CPU make every pass wait for them. Of plans that are hardly slower, the one that needs least.
    """

    def sacrifice(one: Option) -> tuple[bool, bool]:
        return one.plan.embeddings_on_cpu, one.plan.optim == FRUGAL_OPTIM

    least = min(map(sacrifice, found))
    kept = [one for one in found if sacrifice(one) == least]
    best = max(kept, key=lambda one: (one.tokens_per_second, -one.plan.checkpointed_layers, one.plan.batch_size))
    near = [
        one
        for one in kept
        if one.tokens_per_second >= (1 - HARDLY_FASTER) * best.tokens_per_second
        and one.plan.checkpointed_layers <= best.plan.checkpointed_layers
    ]
    return min(near, key=lambda one: (one.required_bytes, -one.tokens_per_second))
