"""How a training is laid out on a GPU: how much goes through at once, what is kept of it, and where the optimizer is.

The effective batch is the user's (`--batch-size` times `--gradient-accumulation-steps`), and so is
the loss; a plan says in how many passes it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.settings.config import Config
from llmft_cli.training.device_memory import CONTEXT_BYTES
from llmft_cli.training.fast import architectures
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.memory import Breakdown, breakdown_of
from llmft_cli.training.planning.simulation import BatchShape
from llmft_cli.training.planning.speed import Rates, step_seconds
from llmft_cli.training.planning.step_costs import StepCosts, can_keep_dequantized, holdings_of
from llmft_cli.training.step.cpu_embeddings import movable_embeddings

if TYPE_CHECKING:
    from peft import PeftModel

PLAN_KINDS = ("fast", "balanced", "frugal")
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
    for size in sizes(config.batch_size * config.gradient_accumulation_steps):
        batch = batch_of(size)
        if size > 1 and batch.tokens > MOST_TOKENS:
            return
        found = list(of_one_size(Predictor(model, config, batch, rates), config.gradient_checkpointing, available_bytes))
        yield from found
        if not any(one.fits(available_bytes) for one in found):
            return


class Predictor:
    """Predicts what plans with one micro-batch need and how fast they are.

    Attributes:
        checkpointed: the plan with every layer checkpointed, and nothing moved, kept dequantised or offloaded.
        moves_embeddings: whether the model's embeddings can be on the CPU,
        keeps_dequantized: its weights kept dequantised, and
        offloads: the inputs of its layers offloaded.
    """

    def __init__(self, model: PeftModel, config: Config, batch: BatchShape, rates: Rates) -> None:
        self._costs = StepCosts(model, batch)
        self._batch, self._rates = batch, rates
        passes = config.batch_size * config.gradient_accumulation_steps // batch.sequences
        self.checkpointed = Plan(batch.sequences, passes, len(decoder_layers(model)), config.optim)
        self.moves_embeddings = movable_embeddings(model) is not None
        self.keeps_dequantized = can_keep_dequantized(model)
        self.offloads = bool(architectures.blocks_of(model))
        self._held = {kept: holdings_of(model, kept) for kept in {False, self.keeps_dequantized}}

    def predict(self, plan: Plan) -> Option:
        """A plan, without what this model cannot do, and what is predicted of it."""
        layers = self.checkpointed.checkpointed_layers
        kept = plan.dequantized_weights and self.keeps_dequantized
        offloading = plan.activation_offloading and self.offloads and plan.checkpointed_layers == layers and not kept
        plan = replace(plan, dequantized_weights=kept, activation_offloading=offloading)
        step, held = self._costs.step(plan), self._held[kept]
        breakdown = breakdown_of(held, step, plan.optim, plan.embeddings_on_cpu)
        recorded = held.is_recorded(plan.embeddings_on_cpu)
        least_kept = self._costs.as_it_is(layers).activation_bytes
        required = required_bytes(breakdown, least_kept, held.fast_layers, recorded)
        seconds = step_seconds(step, self._rates, packed=self._batch.rows > self._batch.sequences, recorded=recorded)
        if offloading:
            seconds *= OFFLOADING_TIME
        return Option(plan, breakdown, required, self._batch.tokens / seconds)


def of_one_size(predictor: Predictor, checkpointing: bool | None, available_bytes: int | None) -> Iterator[Option]:
    """Without checkpointing, with as little as fits, with all of it, with its activations offloaded, and at the least.

    The first two with weights kept dequantised before, and as they are.

    Args:
        checkpointing: what the settings ask for; None is as little as possible.
    """
    whole = predictor.checkpointed
    if checkpointing is not True:
        for kept in (True, False) if predictor.keeps_dequantized else (False,):
            free = predictor.predict(replace(whole, checkpointed_layers=0, dequantized_weights=kept))
            yield free
            if checkpointing is None and not free.fits(available_bytes):
                yield from fewest_checkpointed(predictor, replace(whole, dequantized_weights=kept), available_bytes)
        if checkpointing is False:
            yield from frugal(predictor, replace(whole, checkpointed_layers=0))
            return
    yield predictor.predict(whole)
    if predictor.offloads:
        yield predictor.predict(replace(whole, activation_offloading=True))
    yield from frugal(predictor, replace(whole, activation_offloading=predictor.offloads))


def frugal(predictor: Predictor, plan: Plan) -> Iterator[Option]:
    """The plan with an optimizer in 8 bits, and with the embeddings on the CPU besides."""
    if plan.optim != FRUGAL_OPTIM:
        yield predictor.predict(replace(plan, optim=FRUGAL_OPTIM))
    if predictor.moves_embeddings:
        yield predictor.predict(replace(plan, optim=FRUGAL_OPTIM, embeddings_on_cpu=True))


def fewest_checkpointed(predictor: Predictor, plan: Plan, available_bytes: int | None) -> Iterator[Option]:
    """The plan with the fewest checkpointed layers that fits, if one does with less than all of them."""
    low, high = 0, plan.checkpointed_layers
    while high - low > 1:
        middle = (low + high) // 2
        fits = predictor.predict(replace(plan, checkpointed_layers=middle)).fits(available_bytes)
        low, high = (low, middle) if fits else (middle, high)
    if high < plan.checkpointed_layers:
        yield predictor.predict(replace(plan, checkpointed_layers=high))


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
