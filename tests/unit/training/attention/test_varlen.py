"""Attention within packed rows: where it is used, what it hands to torch's kernel, and that this is the model's own.

The kernel needs a GPU; here a function of the same arguments stands in for it, one that computes the
definition of attention row by row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen as torch_varlen

from llmft_cli.training.attention.varlen import (
    can_use_varlen_attention,
    has_flash,
    use_varlen_attention,
    varlen_attention,
)
from llmft_cli.training.step.loss import summed_loss

from ..attention_by_definition import CPU, SEQUENCES, built, by_definition, packed
from ..meta_models import META


def logits_of_rows(model: Any, batch: dict[str, Any]) -> Iterator[tuple[torch.Tensor, slice]]:
    """Each row on its own, and its place in the flattened batch."""
    ids, edges = batch["input_ids"].flatten(), batch["row_starts"].tolist()
    for start, end in pairwise(edges):
        yield model(input_ids=ids[None, start:end]).logits[0], slice(start, end)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    "changes",
    [
        {},  # two query heads to a key-value head
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "head_dim": 64},
        {"model_type": "mistral", "sliding_window": 6},
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        {"model_type": "granite", "attention_multiplier": 0.3},  # a scale of its own
    ],
)
def test_packed_rows_have_the_logits_of_rows_on_their_own(changes: dict[str, Any]) -> None:
    """With transformers' own attention for the rows; sliding windows are shorter than the rows."""
    model, batch = built(**changes), packed()
    with torch.no_grad():
        expected = list(logits_of_rows(model, batch))
        use_varlen_attention(model)
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        places = {"cu_seq_lens_q": batch["row_starts"], "max_length_q": batch["longest_row"]}
        found = model(**inputs, **places, use_cache=False).logits.flatten(0, 1)
    assert len(expected) >= sum(map(len, SEQUENCES))
    spread = found.std()
    for logits, place in expected:
        assert (found[place] - logits).abs().max() < 1e-4 * spread


@pytest.mark.usefixtures("stand_in")
def test_a_window_is_there_to_be_seen() -> None:
    """The test above would not notice a window that both sides ignore."""
    with torch.no_grad():
        wide, narrow = (
            next(logits_of_rows(built(model_type="mistral", sliding_window=window), packed()))[0] for window in (6, None)
        )
    assert (wide[:6] - narrow[:6]).abs().max() < 1e-5
    assert (wide[6:] - narrow[6:]).abs().max() > 1e-3


@pytest.mark.usefixtures("stand_in")
def test_losses_and_gradients_are_those_of_the_mask() -> None:
    """The same step with transformers' mask of packed rows, and with the boundaries of the rows."""
    results = []
    for use in (False, True):
        model = built()
        if use:
            use_varlen_attention(model)
        weight = model.model.layers[0].self_attn.k_proj.weight.requires_grad_()
        loss = summed_loss(model, packed())
        loss.backward()
        results.append((loss.item(), weight.grad))
    (expected, wanted), (found, gradient) = results
    assert found == pytest.approx(expected, rel=1e-6)
    assert (gradient - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("window", "seen"), [(None, (-1, 0)), (1, (0, 0)), (4096, (4095, 0))])
def test_what_the_kernel_is_handed(window: int | None, seen: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers counts a token itself in its window; the kernel counts those before it."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def kernel(*args: Any, enable_gqa: bool = False, **options: Any) -> torch.Tensor:
        calls.append((args, options | {"enable_gqa": enable_gqa}))
        return args[0]

    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    query, key, value = torch.randn(2, 4, 12, 8), torch.randn(2, 2, 12, 8), torch.randn(2, 2, 12, 8)
    starts = torch.tensor([0, 5, 12, 24], dtype=torch.int32)
    out, weights = varlen_attention(
        torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=starts, max_length_q=12, scaling=0.25, sliding_window=window
    )
    ((args, options),) = calls
    assert [states.shape for states in args[:3]] == [(24, 4, 8), (24, 2, 8), (24, 2, 8)]
    assert torch.equal(args[1][12:], key[1].transpose(0, 1))
    assert args[3] is args[4] is starts
    assert args[5:] == (12, 12)
    assert options == {"scale": 0.25, "window_size": seen, "enable_gqa": True}
    assert torch.equal(out, query.transpose(1, 2))
    assert weights is None


@pytest.mark.parametrize(("under_autocast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_kernel_gets_what_autocast_would_make_of_it(
    under_autocast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DoRA's scales gave fp32 queries and keys, which FlashAttention rejects."""
    given: set[torch.dtype] = set()

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        given.update((query.dtype, key.dtype, value.dtype))
        return query

    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    states = [torch.randn(1, 4, 3, 16) for _ in range(2)]
    starts = torch.tensor([0, 3], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        varlen_attention(torch.nn.Module(), *states, states[0].to(expected), None, cu_seq_lens_q=starts, max_length_q=3)
    assert given == {expected}


def test_a_torch_that_shares_heads_unasked_is_not_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11's kernel supports fewer key heads without the argument."""
    asked = {}

    def older(query: Any, key: Any, value: Any, *places: Any, scale: Any = None, window_size: Any = None) -> Any:
        asked["window"] = window_size
        return query

    monkeypatch.setattr(torch_varlen, "varlen_attn", older)
    states, starts = torch.randn(1, 2, 4, 8), torch.tensor([0, 4], dtype=torch.int32)
    varlen_attention(torch.nn.Identity(), states, states, states, None, cu_seq_lens_q=starts, max_length_q=4)
    assert asked == {"window": (-1, 0)}


def test_what_one_kernel_takes_says_nothing_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer for the first kernel was once used for all, so results depended on the order of tests."""

    def older(query: torch.Tensor, *_: Any, scale: Any = None, window_size: Any = None) -> torch.Tensor:
        return query

    states, starts = torch.randn(1, 2, 4, 8), torch.tensor([0, 4], dtype=torch.int32)
    shared = states[:, :1]
    for kernel in (older, by_definition):  # the second refuses fewer heads unless told
        monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
        varlen_attention(torch.nn.Identity(), states, shared, shared, None, cu_seq_lens_q=starts, max_length_q=4)


def test_the_stand_in_takes_what_the_kernel_takes() -> None:
    real, ours = (inspect.signature(function).parameters for function in (torch_varlen.varlen_attn, by_definition))
    assert list(real)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size"} <= set(real)
    assert len(list(ours)[:7]) == 7


def test_it_is_used_on_gpus_that_have_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for a GPU."""
    gpu = torch.device("cuda", 0)
    assert has_flash(META)
    assert not has_flash(CPU)
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert has_flash(gpu) is expected
    model = built(META)
    assert can_use_varlen_attention(model, META)
    assert can_use_varlen_attention(model, gpu)
    assert not can_use_varlen_attention(model, CPU)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"model_type": "mistral", "sliding_window": 8}, True),
        ({"head_dim": 256}, True),
        ({"head_dim": 320}, False),  # beyond the kernel
        ({"head_dim": 100}, False),  # no multiple of 8; that was the kernel's to say once
        ({"hidden_size": 1088, "num_attention_heads": 4, "head_dim": None}, False),  # 272, by division
        ({"attention_dropout": 0.1}, False),
        ({"attention_dropout": 0.0}, True),
    ],
)
def test_it_is_used_where_it_is_what_the_model_computes(changes: dict[str, Any], expected: bool) -> None:
    assert can_use_varlen_attention(built(META, **changes), META) is expected


def test_capped_scores_are_left_to_the_models_own_attention() -> None:
    """As Gemma 2 has them, before the softmax."""
    model = built(META)
    model.config.attn_logit_softcapping = 50.0
    assert not can_use_varlen_attention(model, META)
    model.config.attn_logit_softcapping = None
    assert can_use_varlen_attention(model, META)


def test_a_model_that_attends_in_a_way_of_its_own_is_left_to_it() -> None:
    model = built(META)
    model._supports_attention_backend = False
    assert not can_use_varlen_attention(model, META)
