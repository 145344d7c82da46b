"""Steps followed on the `meta` device, remembered: they are the same every time, and take most of the time of planning."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from llmft_cli.training.fast.architectures import keeps_dequantized
from llmft_cli.training.planning import layer_costs, step_costs

if TYPE_CHECKING:
    from llmft_cli.settings.config import Config
    from llmft_cli.training.planning.simulation import BatchShape, Step


@cache
def costs(model: Any, batch: BatchShape, weights_kept: bool) -> layer_costs.LayerCosts | None:
    return layer_costs.layer_costs(model, batch)


@cache
def checkpointed_step(model: Any, batch: BatchShape, weights_kept: bool) -> Step:
    return layer_costs.checkpointed_step(model, batch)


@cache
def whole_step(model: Any, batch: BatchShape, checkpointed: int | None, weights_kept: bool) -> Step:
    return layer_costs.whole_step(model, batch, checkpointed)


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have planning follow each micro-batch of a model once, for all tests that share the model."""
    for function in (costs, checkpointed_step, whole_step):
        name = "layer_costs" if function is costs else function.__name__
        monkeypatch.setattr(step_costs, name, lambda model, *what, of=function: of(model, *what, keeps_dequantized(model)))


def of_the_model(config: Config) -> Config:
    """The settings without those that say nothing of the model that is followed."""
    batches = {"batch_size": 1, "gradient_accumulation_steps": 1, "max_seq_length": 64, "tokens_per_batch": None}
    plans = {"plan": "fast", "max_vram": None, "gradient_checkpointing": None, "optim": "adamw_torch_fused"}
    return replace(config, **batches, **plans)
