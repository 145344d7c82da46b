"""Inputs of layers that wait in the host's memory: what comes back, and how much of it is on the device at a time."""

from __future__ import annotations

import weakref

import pytest
import torch

from llmft_cli.training.fast.offloaded_inputs import OffloadedInputs

LAYERS = 5


def inputs(tokens: int, device: str = "cpu") -> list[torch.Tensor]:
    return [torch.full((tokens, 4), float(index + 1), dtype=torch.bfloat16, device=device) for index in range(LAYERS)]


def test_each_layer_gets_its_input_back() -> None:
    """In passes of several sizes, of which the larger one needs more room."""
    offloaded = OffloadedInputs(torch.device("cpu"))
    for tokens in (3, 8, 2, 8):
        for index, rows in enumerate(inputs(tokens)):
            offloaded.put(index, rows)
        for index in reversed(range(LAYERS)):
            assert torch.equal(offloaded.take(index), inputs(tokens)[index])


def test_what_comes_back_is_not_what_was_given_but_for_the_last() -> None:
    """A buffer may be used again for something else once its copy is made."""
    offloaded = OffloadedInputs(torch.device("cpu"))
    given = inputs(3)
    for index, rows in enumerate(given):
        offloaded.put(index, rows)
        if index:
            given[index - 1].zero_()
    for index in reversed(range(LAYERS)):
        assert (offloaded.take(index) == index + 1).all()


def test_a_pass_that_broke_off_is_forgotten_by_the_next() -> None:
    offloaded = OffloadedInputs(torch.device("cpu"))
    for index in range(3):
        offloaded.put(index, inputs(3)[index])
    for index, rows in enumerate(inputs(2)):
        offloaded.put(index, 7 * rows)
    for index in reversed(range(LAYERS)):
        assert (offloaded.take(index) == 7 * (index + 1)).all()


def test_what_a_pass_that_broke_off_copied_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been part of a graph that is none any more, for which CUDA refused the wait: the training ended there."""
    offloaded = OffloadedInputs(torch.device("cpu"))
    offloaded.put(0, inputs(3)[0])
    stale = offloaded._leaving
    waited = []
    monkeypatch.setattr(offloaded, "_wait_for", waited.append)
    offloaded.put(0, inputs(3)[0])
    assert waited == []
    fresh = offloaded._leaving
    offloaded.put(1, inputs(3)[1])
    assert waited == [fresh]
    assert fresh is not stale


def test_two_inputs_at_most_are_held() -> None:
    """And none after the backward pass."""
    for device in ("cpu", "meta"):
        offloaded = OffloadedInputs(torch.device(device))
        seen: list[weakref.ref[torch.Tensor]] = []

        def held(seen: list[weakref.ref[torch.Tensor]] = seen) -> int:
            return sum(one() is not None for one in seen)

        for index in range(LAYERS):
            rows = torch.ones(3, 4, device=device)
            seen.append(weakref.ref(rows))
            offloaded.put(index, rows)
            del rows
            assert held() == 1
        for index in reversed(range(LAYERS)):
            rows = offloaded.take(index)
            assert rows.shape == (3, 4)
            seen.append(weakref.ref(rows))
            del rows
            assert held() == 0
