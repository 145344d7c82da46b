"""Whether a model keeps the rows of a packed sequence apart, measured on the model itself.

transformers' attention masks keep them apart if the model builds the mask from position ids. Attention with its own
biases (BLOOM, MPT) does not, nor do layers with a state along the sequence (Mamba, linear attention). Such a model runs
each row separately. And `varlen.varlen_attention` does not know what a model adds to its attention, as gpt-oss does: if
its results differ, the model keeps its own attention.
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
# The relative change of a token's hidden state that is allowed when only tokens of other rows change. Among tiny models of
# forty architectures in 16 bits, those that keep rows apart are at 0 and the others above 0.1.
CONTAMINATION = 0.01
# The relative difference of the median token's hidden state that is allowed between two ways to compute the same: 0.013 was
# seen in 16 bits, and a different expert may be chosen for some tokens.
DISAGREEMENT = 0.1


def settle_attention(model: PeftModel, own_attention: str | None) -> None:
    """Restore a model's own attention if `varlen_attention` computes something else; fast layers are known to agree.

    Args:
        own_attention: the implementation that transformers chose.
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
    """Let `loss.summed_loss` run each row separately if the model mixes packed rows; returns whether it keeps them apart."""
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
    """The base model in inference mode, without its adapter."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        yield
    model.train(was_training)


def random_ids(causal: Any, seed: int) -> list[int]:
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    return torch.randint(vocabulary, (ROW_TOKENS,), generator=torch.Generator().manual_seed(seed)).tolist()


def states_of_last(causal: Any, rows: list[list[int]]) -> torch.Tensor:
    """Last hidden states of the last row of a packed sequence, in fp32, of shape (tokens of the row, hidden)."""
    ids = [token for row in rows for token in row]
    labels = [IGNORED] * (len(ids) - ROW_TOKENS + 1) + rows[-1][1:]
    batch = collate([{"input_ids": ids, "labels": labels, "row_lengths": [len(row) for row in rows]}])
    return hidden_states(causal, to_device(batch, causal.device))[-ROW_TOKENS:].float()


def differences(states: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Relative difference of each token's states, of shape (tokens,)."""
    return (states - others).norm(dim=1) / others.norm(dim=1)
