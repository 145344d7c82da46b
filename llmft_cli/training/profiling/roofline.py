"""The minimum time of an optimizer step: all its computation and memory traffic at the device's full rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from llmft_cli.base.errors import first_line
from llmft_cli.gpu import rates as measuring
from llmft_cli.models import random_model
from llmft_cli.settings.compute_types import torch_type
from llmft_cli.settings.config import Config
from llmft_cli.training.fast.kernels.select import abilities_of
from llmft_cli.training.loop.smaller_passes import random_state, set_random_state
from llmft_cli.training.planning.decide import can_be_predicted
from llmft_cli.training.planning.simulation import BatchShape, Step
from llmft_cli.training.planning.speed import Rates
from llmft_cli.training.planning.step_costs import StepCosts, can_keep_dequantized
from llmft_cli.training.step.tuned_model import make_trainable

if TYPE_CHECKING:
    from peft import PeftModel

    from llmft_cli.training.batches.collate import Batch
    from llmft_cli.training.plan import Plan


@dataclass(frozen=True)
class Roofline:
    """The work of an optimizer step, the device's rates, and the resulting time.

    Attributes:
        flops: of matrix products and attention.
        moved_bytes: bytes read and written by everything else.
        bf16_flops_per_second: of matrix products in the compute type.
    """

    seconds: float
    flops: float
    moved_bytes: float
    bf16_flops_per_second: float
    bandwidth_bytes_per_second: float


def rates_or_why_none(config: Config, device: torch.device) -> Rates | str:
    """The device's rates, to be measured while its memory is free; or the reason why there is no roofline."""
    if device.type != "cuda":
        return "steps on a CPU are not predicted"
    if not can_be_predicted(config):
        return "steps with DoRA, int8 or custom model code are not predicted"
    try:
        return measured_rates(device, config.compute_dtype)
    except Exception as error:  # for example if others use the GPU; a missing roofline must not stop the training
        return f"the device's rates could not be measured: {first_line(error)}"


def measured_rates(device: torch.device, compute_dtype: str) -> Rates:
    """Takes less than a second and about 1 GiB of the device's memory; preserves the random state."""
    state = random_state(device)
    try:
        flops = measuring.flops_per_second(torch, str(device), compute_dtype)
        return Rates(flops, measuring.bandwidth_bytes_per_second(torch, str(device)))
    finally:
        set_random_state(state, device)
        torch.cuda.empty_cache()


def mean_shape(batches: Sequence[Batch]) -> BatchShape:
    """The average micro-batch: `len(batches)` of it cost as much as these. Attention scales with squared row lengths."""
    count = len(batches)
    lengths = [length for batch in batches for length in batch["row_starts"].diff().tolist()]
    longest = max(lengths)
    sequences = round(sum(batch["input_ids"].shape[0] for batch in batches) / count)
    return BatchShape(
        sequences=sequences,
        length=round(sum(batch["input_ids"].numel() for batch in batches) / count / sequences),
        supervised=round(sum(batch["targets"].numel() for batch in batches) / count),
        rows=max(1, round(sum(length**2 for length in lengths) / count / longest**2)),
        longest_row=longest,
    )


def simulate_pass(model_folder: str, config: Config, plan: Plan, batch: BatchShape, device: torch.device) -> Step:
    """Simulate one forward and backward pass of the model in a folder, with the plan, on meta tensors."""
    from transformers import AutoConfig

    state = random_state(device)
    try:
        shape = AutoConfig.from_pretrained(model_folder)
        base = random_model.build(shape, torch.device("meta"), config.quantization, torch_type(config.compute_dtype))
        model = make_trainable(base, config, config.model, abilities_of(device))
        kept = plan.dequantized_weights and can_keep_dequantized(model)
        return StepCosts(model, batch).step(replace(plan, dequantized_weights=kept, activation_offloading=False))
    finally:
        set_random_state(state, device)


def roofline(step: Step, passes: float, rates: Rates) -> Roofline:
    """The roofline of an optimizer step of `passes` passes; the optimizer's own work on adapters is negligible."""
    flops = passes * (step.product_flops + step.attention_flops)
    moved_bytes = passes * step.moved_bytes
    seconds = flops / rates.bf16_flops_per_second + moved_bytes / rates.bandwidth_bytes_per_second
    return Roofline(seconds, flops, moved_bytes, rates.bf16_flops_per_second, rates.bandwidth_bytes_per_second)


def roofline_or_why_none(
    model: PeftModel, config: Config, plan: Plan, batches: Sequence[Batch], step_count: int, rates: Rates
) -> Roofline | str:
    """The roofline of optimizer steps with these micro-batches, or the reason why there is none."""
    try:
        step = simulate_pass(model.get_base_model().config._name_or_path, config, plan, mean_shape(batches), model.device)
    except Exception as error:  # training works without the roofline, whatever the model
        return f"steps could not be simulated: {first_line(error)}"
    return roofline(step, len(batches) / step_count, rates)
