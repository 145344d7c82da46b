"""Steps followed on the `meta` device, remembered: they are the same every time, and take most of the time of planning."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from llmft_cli.training.fast.architectures import keeps_dequantized
from llmft_cli.training.planning import layer_costs, step_costs

if TYPE_CHECKING:
    from llmft_cli.training.planning.simulation import BatchShape, Step


@cache
def costs(model: Any, batch: BatchShape, weights_kept: bool) -> layer_costs.LayerCosts | None:
    return layer_costs.layer_costs(model, batch)


@cache
def checkpointed_step(model: Any, batch: BatchShape, weights_kept: bool) -> Step:
    return layer_costs.checkpointed_step(model, batch)


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have planning follow each micro-batch of a model once, for all tests that share the model."""
    for name, function in (("layer_costs", costs), ("checkpointed_step", checkpointed_step)):
        monkeypatch.setattr(step_costs, name, lambda model, batch, of=function: of(model, batch, keeps_dequantized(model)))
