"""Keep the input embeddings in the host's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def movable_embeddings(model: Any) -> torch.nn.Embedding | None:
    """The input embeddings where they only serve to look ids up: not tied to the output layer, trained or adapted."""
    import torch

    embeddings = model.get_input_embeddings()
    if type(embeddings) is not torch.nn.Embedding or embeddings.weight.requires_grad:
        return None
    return None if embeddings.weight is model.get_output_embeddings().weight else embeddings


def keep_embeddings_on_cpu(model: PeftModel) -> None:
    """Look ids up in the host's memory, and give what they stand for to the device that the ids are on.

    The weights are no parameter of the model any more: what moves a model (accelerate) or asks where it
    is (`model.device`) does not come upon them, and neither does an adapter that is saved or loaded.

    Raises:
        ConfigError: the embeddings have another use.
    """
    embeddings = movable_embeddings(model)
    if embeddings is None:
        raise ConfigError(
            "embeddings_on_cpu: this model's embeddings are tied to its output layer, trained or adapted",
            "set embeddings_on_cpu to false in the plan",
        )
    weights = embeddings.weight.detach().cpu()
    del embeddings.weight
    embeddings.weight = weights
    look_up = embeddings.forward

    def forward(input_ids: torch.Tensor) -> torch.Tensor:
        return look_up(input_ids.cpu()).to(input_ids.device)

    embeddings.forward = forward  # type: ignore[assignment,method-assign]
