"""Keep the input embeddings in CPU memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def movable_embeddings(model: Any) -> torch.nn.Embedding | None:
    """The input embeddings, if they are only used for lookup: not tied to the output layer, trained or adapted; else None."""
    import torch

    embeddings = model.get_input_embeddings()
    if type(embeddings) is not torch.nn.Embedding or embeddings.weight.requires_grad:
        return None
    return None if embeddings.weight is model.get_output_embeddings().weight else embeddings


def keep_embeddings_on_cpu(model: PeftModel) -> None:
    """Look ids up in CPU memory, and copy the embeddings to the device of the ids.

    The weights are no longer a parameter of the model, so that code that moves a model (accelerate) or asks for its device
    (`model.device`), and saving or loading an adapter, do not see them.

    Raises:
        ConfigError: the embeddings are tied to the output layer, trained or adapted.
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
