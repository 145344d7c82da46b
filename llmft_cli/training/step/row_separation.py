"""Whether a model keeps the rows of a packed sequence apart, which is measured on the model itself.

transformers' masks do it for attention, where a model makes them from position ids. Attention with biases of its own
(BLOOM, MPT) does not, nor do layers whose state runs along the sequence (Mamba, linear attention). Such a model is
given each row by itself. And `varlen.varlen_attention` knows nothing of what a model adds to its attention, as
gpt-oss does: where that is seen in what it computes, the model goes back to its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.training.attention import varlen
from llmft_cli.training.batches.collate import collate, to_device
from llmft_cli.training.fast.architectures import blocks_of
from llmft_cli.training.step.loss import SEES_OTHER_ROWS, hidden_states

if TYPE_CHECKING:
    from peft import PeftModel

ROW_TOKENS = 12
# Of a token's hidden state, by which it may differ where nothing but other tokens of other rows did: models that keep rows
# apart are at 0 in 16 bits, others above 0.1, by tiny ones of forty architectures.
CONTAMINATION = 0.01
# Of the median token's, by which two ways to compute the same may differ: 0.013 in 16 bits, and an expert chosen otherwise
# here and there.
DISAGREEMENT = 0.1


def settle_attention(model: PeftModel, own_attention: str | None) -> None:
    """Let a model attend by itself again where `varlen_attention` computes something else; fast layers are known.

    Args:
        own_attention: what transformers had chosen.
    """
    causal = model.get_base_model()
    if causal.config._attn_implementation != varlen.NAME or blocks_of(model):
        return
    with looked_at(model):
        row = [random_ids(causal, 0)]
        found = states_of_last(causal, row)
        causal.set_attn_implementation(own_attention)
        if differences(found, states_of_last(causal, row)).median() < DISAGREEMENT:
            causal.set_attn_implementation(varlen.NAME)


def settle_rows(model: PeftModel) -> bool:
    """Have `loss.summed_loss` give the model each row by itself if it does not keep rows apart; whether it does."""
    causal = model.get_base_model()
    if blocks_of(model):
        return True
    with looked_at(model):
        first, other, row = (random_ids(causal, seed) for seed in range(3))
        change = differences(states_of_last(causal, [first, row]), states_of_last(causal, [other, row])).max()
    apart = bool(change < CONTAMINATION)
    setattr(causal, SEES_OTHER_ROWS, not apart)
    return apart


@contextmanager
def looked_at(model: PeftModel) -> Iterator[None]:
    """The base model as it infers."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        yield
    model.train(was_training)


def random_ids(causal: Any, seed: int) -> list[int]:
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    return torch.randint(vocabulary, (ROW_TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()


def states_of_last(causal: Any, rows: list[list[int]]) -> torch.Tensor:
    """Last hidden states of the last of rows that are packed into a sequence, in fp32, of shape (its tokens, hidden)."""
    ids = [token for row in rows for token in row]
    labels = [IGNORED] * (len(ids) - ROW_TOKENS + 1) + rows[-1][1:]
    batch = collate([{"input_ids": ids, "labels": labels, "row_lengths": [len(row) for row in rows]}])
    return hidden_states(causal, to_device(batch, causal.device))[-ROW_TOKENS:].float()


def differences(states: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Of each token's, as a share."""
    return (states - others).norm(dim=1) / others.norm(dim=1)
