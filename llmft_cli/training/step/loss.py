"""The loss of supervised tokens, computed where there is one and nowhere else, a few positions at a time.

The logits of all positions are the largest tensor of a step, and most positions have no target: two thirds of them in
chat rows. So the output layer gets only the positions that predict a supervised token, in chunks. The gradient of each
chunk is computed before the next chunk's logits take its place. Whatever a model does to its logits afterwards (capping,
scaling) is elementwise and unchanged, so this is correct for every causal model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from llmft_cli.training.attention import varlen
from llmft_cli.training.batches.collate import each_row_alone
from llmft_cli.training.fast import architectures
from llmft_cli.training.fast.output_loss import gradient_factor, output_loss, scale_gradient

# 64 MiB in fp32; a chunk needs about four such tensors at a time, little compared to a layer's activations.
LOGITS_PER_CHUNK = 2**24

SEES_OTHER_ROWS = "sees_other_rows"  # an attribute of causal models that mix packed rows

Head = Callable[[torch.Tensor], torch.Tensor]


def summed_loss(model: Any, batch: Mapping[str, Any], forward: Any = None) -> torch.Tensor:
    """Negative log-likelihood of the batch's supervised tokens in nats, summed in fp32.

    Args:
        batch: as `collate.collate` makes it, on the model's device.
        forward: called instead of the model where something wraps it (autocast); the logits of all supervised tokens are
            then computed at once.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(causal, SEES_OTHER_ROWS, False):
        batch = each_row_alone(batch)
    if forward is not None or trains_head(causal):
        with output_layer_at(causal, batch["predicting"]):
            logits = (forward or model)(**inputs_of(causal, batch)).logits[0]
        return cross_entropy(logits.float(), batch["targets"], reduction="sum")
    hidden = hidden_states(causal, batch)
    if architectures.blocks_of(causal):
        return output_loss(hidden, batch["predicting"], batch["targets"], causal.get_output_embeddings().weight)
    hidden = hidden[batch["predicting"]]
    with decoder_left_out(decoder_of(causal)):
        vocabulary = causal.get_output_embeddings().weight.shape[0]
        loss: torch.Tensor = ChunkedLoss.apply(hidden, batch["targets"], head_of(causal), vocabulary)  # type: ignore[no-untyped-call]
    return loss


def loss_and_gradients(model: Any, batch: Mapping[str, Any], divisor: torch.Tensor) -> torch.Tensor:
    """`summed_loss` divided by `divisor`, with its gradients added to those of the weights."""
    loss = summed_loss(model, batch) / divisor
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def clear_gradients(weights: Sequence[torch.nn.Parameter]) -> None:
    for one in weights:
        one.grad = None


def hidden_states(causal: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """The decoder's last hidden states, of shape (positions, hidden)."""
    result: torch.Tensor = decoder_of(causal)(**inputs_of(causal, batch)).last_hidden_state.flatten(0, 1)
    return result


def decoder_of(causal: Any) -> Any:
    """The causal model without its output layer."""
    decoder = causal.get_decoder()
    return causal.model if decoder is causal else decoder  # Llama 4's `get_decoder` returns the causal model itself


def inputs_of(causal: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the model's forward."""
    return {"input_ids": batch["input_ids"], "use_cache": False, **row_marks(causal, batch)}


def row_marks(causal: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that tell a model's attention which tokens belong to one row."""
    if causal.config._attn_implementation == varlen.NAME:
        marks = {
            "cu_seq_lens_q": batch["row_starts"],
            "max_length_q": batch["longest_row"],
            "first_rows_alone": batch["first_rows_alone"],
        }
        return {"position_ids": batch["position_ids"], **marks}
    ids = batch["input_ids"]
    if ids.is_meta:  # transformers would read the position ids to build this mask, and `meta` tensors have no values
        return {"attention_mask": torch.empty(len(ids), 1, ids.shape[1], ids.shape[1], dtype=causal.dtype, device="meta")}
    return {"position_ids": batch["position_ids"]}


def trains_head(causal: Any) -> bool:
    return any(weights.requires_grad for weights in causal.get_output_embeddings().parameters())


class ChunkedLoss(torch.autograd.Function):
    """Summed cross entropy of hidden states of shape (tokens, hidden); the forward pass computes its gradient, too."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: Head, vocabulary: int) -> torch.Tensor:
        rows = max(1, LOGITS_PER_CHUNK // vocabulary)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        ctx.factor = gradient_factor(hidden.dtype)
        for start in range(0, len(hidden), rows):
            chunk = hidden[start : start + rows].detach().requires_grad_(gradient is not None)  # (rows, hidden)
            with torch.set_grad_enabled(gradient is not None):
                loss = cross_entropy(head(chunk).float(), targets[start : start + rows], reduction="sum")
            if gradient is not None:
                factor = None if ctx.factor == 1 else torch.full_like(loss, ctx.factor)
                (gradient[start : start + rows],) = torch.autograd.grad(loss, chunk, factor)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return scale_gradient(ctx.saved_tensors[0], gradients[0], ctx.factor), None, None, None


def head_of(causal: Any) -> Head:
    """The function from hidden states to logits of shape (tokens, vocabulary): the model's own forward without its decoder."""

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = causal(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits[0]
        return result

    return logits


@contextmanager
def decoder_left_out(decoder: Any) -> Iterator[None]:
    """Let the decoder return its input as its last hidden state, so that the causal model only applies its head."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class HiddenStates(BaseModelOutputWithPast):
        """Other fields that causal models look for in their decoder's output (`router_logits`, `cross_attentions`) are None."""

        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    def give_back(*_: Any, inputs_embeds: torch.Tensor, **__: Any) -> HiddenStates:
        return HiddenStates(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]

    forward, decoder.forward = decoder.forward, give_back
    try:
        yield
    finally:
        decoder.forward = forward


@contextmanager
def output_layer_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Give the output layer only some positions, so that the model's logits have shape (1, positions, vocabulary).

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
