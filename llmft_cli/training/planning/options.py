"""The plans worth considering on a GPU, their predicted memory and speed, and the choice between them.

The effective batch stays the user's (`--batch-size` times `--gradient-accumulation-steps`), and so does the loss. A plan
says how many passes compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmft_cli.settings.config import Config
from llmft_cli.training.device_memory import CONTEXT_BYTES
from llmft_cli.training.fast import architectures
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.layer_costs import depth_of
from llmft_cli.training.planning.memory import Breakdown, breakdown_of
from llmft_cli.training.planning.simulation import BatchShape
from llmft_cli.training.planning.speed import Rates, step_seconds
from llmft_cli.training.planning.step_costs import StepCosts, can_keep_dequantized, holdings_of
from llmft_cli.training.step.cpu_embeddings import movable_embeddings

if TYPE_CHECKING:
    from peft import PeftModel

# Memory that torch's allocator, with expandable segments, reserves on an H100 beyond its peak allocation: 0.19 GiB for
# Llama-2-7B with 512 tokens per pass, 0.21 with 2,048, 0.44 with 8,192, 0.72 with 16,384. Holes come on top if fewer
# layers are checkpointed. So it grows with what a fully checkpointed step keeps: 0.3 to 7.4 GiB there.
RESERVE_BYTES = int(0.2 * 2**30)
RESERVE_SHARE = 0.1
# CUDA graphs have their own memory pool: 0.25 to 0.36 GiB were idle or requested at the peak of the first training runs, and
# some ran out of memory under the rule above. Under this one, none of 42 did (benchmarks/results/memory-fast-h100.json).
RECORDED_RESERVE_BYTES = int(0.35 * 2**30)
# Plain layers dequantise each weight into new memory, which leaves holes between the activations that are kept: up to 6%
# of them (0.50 of 8.4 GiB with 20 of 13B's 40 layers checkpointed, 1.69 of 31.7 with none, which ran out of memory).
# Fast layers reuse the same memory for all weights.
HOLES_SHARE = 0.055
FRUGAL_OPTIM = "paged_adamw_8bit"
BALANCED_SHARE = 0.75
HARDLY_FASTER = 0.01  # below the accuracy of speed predictions
# Copies to CPU memory and back overlap with the computation: on an H100 they cost Llama-2-7B 0.5% to 1.3% of a step and
# SmolLM2-135M 1.2% (benchmarks/LOG.md). The upper end, so that nothing is offloaded without need.
OFFLOADING_TIME = 1.013
# More tokens per pass do not make kernels faster.
MOST_TOKENS = 2**16


@dataclass(frozen=True)
class Option:
    """A plan and its prediction.

    Attributes:
        breakdown: of the peak memory that torch allocates.
        required_bytes: total GPU memory of the process.
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
    kind: str | None = None,
) -> Iterator[Option]:
    """Plans worth considering, from small batches to large, until none of a size fits.

    Args:
        model: as `tuned_model.make_trainable` leaves it, on the `meta` device.
        batch_of: the largest micro-batch of a number of sequences, or of rows if rows are counted.
        available_bytes: of GPU memory; None means no limit.
        kind: the kind to choose from them; those that it never chooses are left out.
    """
    for size in sizes(config.batch_size * config.gradient_accumulation_steps):
        batch = batch_of(size)
        if size > 1 and batch.tokens > MOST_TOKENS:
            return
        predictor = Predictor(model, config, batch, rates, size)
        found = list(of_one_size(predictor, config.gradient_checkpointing, available_bytes, kind))
        yield from found
        if not any(one.fits(available_bytes) for one in found):
            return


class Predictor:
    """Predicts memory and speed of plans with one micro-batch.

    Attributes:
        checkpointed: the plan with every layer checkpointed, and nothing moved, kept dequantised or offloaded.
        moves_embeddings: whether the model's embeddings can be on the CPU.
        keeps_dequantized: whether its weights can be kept dequantised.
        offloads: whether the inputs of its layers can be offloaded.
    """

    def __init__(
        self, model: PeftModel, config: Config, batch: BatchShape, rates: Rates, batch_size: int | None = None
    ) -> None:
        """`batch_size` is that of the plans; by default, the number of sequences in the batch."""
        size = batch_size or batch.sequences
        self._costs = StepCosts(model, batch)
        self._batch, self._rates = batch, rates
        passes = config.batch_size * config.gradient_accumulation_steps // size
        self.checkpointed = Plan(size, passes, depth_of(model), config.optim)
        self.moves_embeddings = movable_embeddings(model) is not None
        self.keeps_dequantized = can_keep_dequantized(model)
        self.offloads = bool(architectures.blocks_of(model))
        self._held = {kept: holdings_of(model, kept) for kept in {False, self.keeps_dequantized}}

    def predict(self, plan: Plan) -> Option:
        """The prediction for a plan; what this model cannot do is taken out of the plan first."""
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


def of_one_size(
    predictor: Predictor, checkpointing: bool | None, available_bytes: int | None, kind: str | None = None
) -> Iterator[Option]:
    """Plans of one batch size, from the most memory to the least.

    Without checkpointing and with as little of it as fits, each with and without weights kept dequantised; then with every
    layer checkpointed, with activations offloaded, and the frugal ones.

    Args:
        checkpointing: whether the settings require or rule out checkpointing; None leaves it to the plan.
        kind: as in `options`.
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
    checkpointed = predictor.predict(whole)
    yield checkpointed
    if kind == "fast" and checkpointed.fits(available_bytes):
        return  # the plans below only save memory, so that `fastest` takes none of them
    if predictor.offloads:
        yield predictor.predict(replace(whole, activation_offloading=True))
    yield from frugal(predictor, replace(whole, activation_offloading=predictor.offloads))


def frugal(predictor: Predictor, plan: Plan) -> Iterator[Option]:
    """The plan with an 8-bit optimizer, and also with the embeddings on the CPU."""
    if plan.optim != FRUGAL_OPTIM:
        yield predictor.predict(replace(plan, optim=FRUGAL_OPTIM))
    if predictor.moves_embeddings:
        yield predictor.predict(replace(plan, optim=FRUGAL_OPTIM, embeddings_on_cpu=True))


def fewest_checkpointed(predictor: Predictor, plan: Plan, available_bytes: int | None) -> Iterator[Option]:
    """The plan with the fewest checkpointed layers that fits, if fewer than all are enough."""
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
    """Total GPU memory of a process: torch's peak, what its allocator reserves without using, and the CUDA context.

    Args:
        checkpointed_bytes: activations of the step with every layer checkpointed; None if the breakdown is of that step.
        fast_layers: whether all weights are dequantised into the same memory.
        recorded: whether passes are replayed as CUDA graphs.
    """
    passing = RESERVE_SHARE * (breakdown.activations if checkpointed_bytes is None else checkpointed_bytes)
    holes = 0 if fast_layers else HOLES_SHARE * breakdown.activations
    least = RECORDED_RESERVE_BYTES if recorded else RESERVE_BYTES
    return breakdown.total + least + int(max(passing, holes)) + CONTEXT_BYTES


def choose(found: Sequence[Option], available_bytes: int | None, kind: str) -> Option | None:
    """The plan of a kind among those that fit; None if none does.

    Args:
        kind: `fast` is the fastest, `balanced` the fastest in three quarters of the memory, `frugal` needs the least.
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
    """The fastest of the plans with the least sacrifice.

    An 8-bit optimizer changes the training a little, so it is used only if no other plan fits. Embeddings on the CPU make
    every pass wait for them. Among plans that are hardly slower, the one that needs the least memory wins.
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
