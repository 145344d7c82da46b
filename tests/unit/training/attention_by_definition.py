"""Attention computed by its definition, as a stand-in for a GPU kernel, and models for it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models import random_model
from llmft_cli.training.batches.collate import collate

from .meta_models import small_shape

CPU = torch.device("cpu")


def by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(q k^T scale) v of each row; the window counts tokens before and after, -1 means all."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    edges = cu_seq_q.tolist()
    assert (edges[0], edges[-1]) == (0, len(query))
    assert max_q == max_k == max(end - start for start, end in pairwise(edges))
    assert key.shape[1] == query.shape[1] or enable_gqa
    before, after = (length if length >= 0 else len(query) for length in window_size)
    shared = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    rows = []
    for start, end in pairwise(edges):
        scores = torch.einsum("qhd,khd->hqk", query[start:end], key[start:end]) * (scale or query.shape[-1] ** -0.5)
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = (distance > before) | (distance < -after)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        rows.append(torch.einsum("hqk,khd->qhd", weights, value[start:end]))
    return torch.cat(rows)


def built(device: torch.device = CPU, **changes: Any) -> Any:
    """A model in fp32, where rounding cannot hide errors."""
    torch.manual_seed(0)
    return random_model.build(small_shape(**changes), device, "none", torch.float32)


SEQUENCES = [[7, 20, 5], [12, 12], [30]]


def packed() -> dict[str, Any]:
    """A batch of sequences of several rows, padded, with the first token of each row unsupervised."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for lengths in SEQUENCES:
        ids = torch.randint(640, (sum(lengths),), generator=generator).tolist()
        labels = [IGNORED if place == 0 else 0 for length in lengths for place in range(length)]
        labels = [token if label == 0 else label for token, label in zip(ids, labels, strict=True)]
        made.append({"input_ids": ids, "labels": labels, "row_lengths": lengths})
    return collate(made)
