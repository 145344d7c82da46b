"""The decoder layers of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def decoder_layers(model: Any) -> list[Any]:
    """The layers that transformers can checkpoint, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    unique = dict.fromkeys(
        module for module in modules_outside_adapters(model) if isinstance(module, GradientCheckpointingLayer)
    )
    return list(unique)


def modules_outside_adapters(module: Any) -> Iterator[Any]:
    """A module and all in it, without looking into layers with an adapter: most of a tuned model's modules are in these."""
    yield module
    if "lora_A" not in module._modules:
        for child in module._modules.values():
            if child is not None:
                yield from modules_outside_adapters(child)
