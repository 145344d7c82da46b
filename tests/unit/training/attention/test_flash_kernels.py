"""Which FlashAttention is used where several are installed, and that one that does not do for a model is not.

What is installed is stood in for: the newer ones need a GPU of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import (
    _registry,
    activate_flash_attention_impl,
    current_flash_attention_impl,
    list_flash_attention_impls,
    register_flash_attention_impl,
    restore_flash_attention_impl,
    varlen,
)

from llmft_cli.training.attention import flash_kernels
from llmft_cli.training.attention.flash_kernels import activate_kernels, choose_kernels, trial, use_newer_kernels

from ..attention_by_definition import built, by_definition

FA3_MODULES, FA4_MODULES = {"flash_attn_interface"}, {"flash_attn", "cutlass"}


@pytest.mark.parametrize(
    ("capability", "installed", "head_dim", "expected"),
    [
        ((9, 0), FA3_MODULES, 128, "FA3"),
        ((9, 0), FA4_MODULES, 128, "FA4"),
        ((9, 0), FA3_MODULES | FA4_MODULES, 128, "FA3"),
        ((9, 0), set(), 128, None),
        ((9, 0), {"flash_attn"}, 128, None),  # 2.x, which torch has itself
        ((9, 0), {"cutlass"}, 128, None),
        ((9, 0), FA3_MODULES | FA4_MODULES, 256, "FA3"),
        ((9, 0), FA4_MODULES, 256, "FA4"),
        ((9, 0), FA3_MODULES | FA4_MODULES, 264, None),
        ((10, 0), FA3_MODULES, 128, None),
        ((10, 3), FA3_MODULES | FA4_MODULES, 128, "FA4"),
        ((10, 0), FA4_MODULES, 192, None),
        ((8, 0), FA3_MODULES | FA4_MODULES, 64, None),
        ((8, 9), FA3_MODULES | FA4_MODULES, 64, None),
        ((12, 0), FA3_MODULES | FA4_MODULES, 64, None),
    ],
)
def test_newer_kernels_are_for_newer_gpus(
    capability: tuple[int, int], installed: set[str], head_dim: int, expected: str | None
) -> None:
    assert choose_kernels(capability, ["FA3", "FA4"], installed, head_dim) == expected


def test_only_kernels_that_torch_knows_are_chosen() -> None:
    """This torch knows both by our names."""
    assert choose_kernels((9, 0), ["FA4"], FA3_MODULES | FA4_MODULES, 64) == "FA4"
    assert choose_kernels((9, 0), [], FA3_MODULES | FA4_MODULES, 64) is None
    assert set(flash_kernels.NEWER_KERNELS) <= set(list_flash_attention_impls())


class Handle:
    """torch's record of active kernels."""

    def __init__(self, on_removal: Callable[[], None]) -> None:
        self.remove = on_removal


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's own, without what it has registered, and without what a test activates."""
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", {})
    assert current_flash_attention_impl() is None
    yield
    if current_flash_attention_impl() is not None:
        restore_flash_attention_impl()


def register(name: str, kernel: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are `varlen_attn` for as long as they are active."""

    def register_kernels() -> Handle:
        monkeypatch.setattr(varlen, "varlen_attn", kernel)
        return Handle(lambda: monkeypatch.setattr(varlen, "varlen_attn", by_definition))

    register_flash_attention_impl(name, register_fn=register_kernels)


@wraps(by_definition)
def slightly_off(*args: Any, **options: Any) -> torch.Tensor:
    return by_definition(*args, **options) * 1.01


@wraps(by_definition)
def without_its_window(*args: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
    return by_definition(*args, window_size=(-1, 0), **options)


@wraps(by_definition)
def with_a_wider_window(*args: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
    before, after = window_size
    return by_definition(*args, window_size=(before + 1 if before > 0 else before, after), **options)


def across_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: torch.Tensor, *_: Any, **options: Any
) -> torch.Tensor:
    one_row = edges[[0, -1]]
    return by_definition(query, key, value, one_row, one_row, len(query), len(query), **options)


@wraps(by_definition)
def refuses(*args: Any, **options: Any) -> torch.Tensor:
    raise AssertionError("head_dim is not supported")


class HasNoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: torch.Tensor) -> torch.Tensor:
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("This flash attention build does not support backward.")


@wraps(by_definition)
def without_backward(*args: Any, **options: Any) -> torch.Tensor:
    return HasNoGradient.apply(by_definition(*args, **options))


@pytest.mark.usefixtures("stand_in", "registry")
@pytest.mark.parametrize(
    ("kernel", "changes", "expected"),
    [
        (slightly_off, {}, "FA3"),
        (slightly_off, {"model_type": "mistral", "sliding_window": 6}, "FA3"),
        (without_its_window, {}, "FA3"),  # which this model has not
        (without_its_window, {"model_type": "mistral", "sliding_window": 6}, None),
        (with_a_wider_window, {"model_type": "mistral", "sliding_window": 6}, None),  # by a token
        (across_rows, {}, None),
        (refuses, {}, None),
        (without_backward, {}, None),
    ],
)
def test_kernels_stay_active_that_do_for_the_model(
    kernel: Callable[..., torch.Tensor], changes: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    register("FA3", kernel, monkeypatch)
    activate_kernels("FA3", built(**changes))
    assert current_flash_attention_impl() == expected
    assert varlen.varlen_attn is (kernel if expected else by_definition)


@pytest.mark.usefixtures("stand_in", "registry")
@pytest.mark.parametrize("error", [ImportError, RuntimeError, AttributeError, OSError])
def test_a_package_that_does_not_match_leaves_attention_as_it_was(error: type[Exception]) -> None:
    """Like a package built for another torch, or one with another module."""

    def register_kernels() -> None:
        raise error("undefined symbol")

    register_flash_attention_impl("FA3", register_fn=register_kernels)
    activate_kernels("FA3", built())
    assert current_flash_attention_impl() is None
    assert varlen.varlen_attn is by_definition


@pytest.mark.usefixtures("stand_in")
def test_the_trial_has_the_models_heads() -> None:
    """The result and the gradients of query, key and value, once more with a window; random numbers go on as before."""
    model = built(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    state = torch.get_rng_state()
    with torch.no_grad():
        shapes = [result.shape for result in trial(model)]
    assert shapes == [(1, 640, 4, 16), (1, 4, 640, 16), (1, 2, 640, 16), (1, 2, 640, 16)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(trial(built(model_type="mistral", sliding_window=6))) == 8


def on_a_gpu(model: Any) -> Any:
    return SimpleNamespace(device=torch.device("cuda", 0), config=model.config)


@pytest.mark.usefixtures("stand_in", "registry")
@pytest.mark.parametrize(
    ("installed", "expected"),
    [(FA3_MODULES, "FA3"), (FA4_MODULES, "FA4"), (FA3_MODULES | FA4_MODULES, "FA3"), ({"flash_attn"}, None), (set(), None)],
)
def test_what_is_installed_is_activated(installed: set[str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces an earlier model's kernels, which may not support this model."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flash_kernels, "find_spec", lambda module: object() if module in installed else None)
    monkeypatch.setattr(flash_kernels, "trial", lambda model: [torch.ones(3)])
    for name in ("earlier", "FA3", "FA4"):
        register(name, slightly_off, monkeypatch)
    activate_flash_attention_impl("earlier")
    use_newer_kernels(on_a_gpu(built()))
    assert current_flash_attention_impl() == expected
    assert varlen.varlen_attn is (slightly_off if expected else by_definition)
