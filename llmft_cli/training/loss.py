"""The loss of supervised tokens, computed where there is one and nowhere else.

The logits of all positions are the largest tensor of a step, and most positions have no target:
in chat rows two thirds of them. So the output layer is given only the positions that predict a
supervised token. What a model does to its logits afterwards (capping, scaling) is elementwise and
stays as it is, which makes this right for every causal model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def output_layer_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Let the output layer see only some positions; the model's logits have shape (1, positions, vocabulary) then.

    Args:
        positions: indices into the batch's flattened positions, of shape (positions,).
    """

    def select(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0].flatten(0, 1)[positions].unsqueeze(0),)

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def summed_loss(model: Any, batch: Mapping[str, torch.Tensor], forward: Any = None) -> torch.Tensor:
    """Negative log-likelihood of the batch's supervised tokens in nats, summed in fp32.

    Args:
        batch: as `batches.collate` makes it, on the model's device.
        forward: what to call instead of the model itself, where something is wrapped around it.
    """
    import torch

    with output_layer_at(model, batch["predicting"]):
        logits = (forward or model)(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    targets = batch["labels"].flatten()[batch["predicting"] + 1]
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
