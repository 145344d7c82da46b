"""The GPU that a training must fit: the freest that torch sees, and what it can."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from llmft_cli.base.reporter import Silent
from llmft_cli.fit.target_gpu import TargetGpu, for_gpu, freest_gpu
from llmft_cli.gpu.gpus import Gpu
from llmft_cli.gpu.probes import Probe
from llmft_cli.settings import compute_types
from llmft_cli.settings.config import resolve
from llmft_cli.training.fast.kernels import select
from llmft_cli.training.planning.speed import Rates

GIBIBYTE = 2**30


def small(**flags: Any) -> Any:
    return resolve({"model": "smollm2-135m"} | flags)


def probe(device: str, flops: float | None = 790e12, compute_dtype: str = "bf16") -> Probe:
    rates = {"bf16": None, "fp16": None, "fp32": 60e12} | {compute_dtype: flops}
    return Probe(device, compute_dtype, True, True, 0.09, 0.09, 0.01, *rates.values(), 2.9e12, None)


def gpu(index: int, free: int | None, device: str | None) -> Gpu:
    return Gpu(index, f"card {index}", f"GPU-{index}", 80 * GIBIBYTE, free, 0.0, 40.0, "580", device=device)


def test_the_freest_card_is_taken_and_of_two_the_second_freest():
    cards = [gpu(0, 10 * GIBIBYTE, "cuda:0"), gpu(1, 70 * GIBIBYTE, "cuda:1"), gpu(2, 40 * GIBIBYTE, "cuda:2")]
    probes = [probe("cuda:0"), probe("cuda:1", flops=100e12), probe("cuda:2", flops=None)]
    first = freest_gpu(cards, probes, 1)
    assert first == TargetGpu("GPU 1: card 1", 70 * GIBIBYTE, "cuda:1", Rates(100e12, 2.9e12))
    second = freest_gpu(cards, probes, 2)
    assert second == TargetGpu("GPU 2: card 2", 40 * GIBIBYTE, "cuda:2", None)
    assert freest_gpu(cards, probes, 4) is None


def test_a_card_without_bf16_is_as_fast_as_it_is_in_fp16():
    found = freest_gpu([gpu(0, 10 * GIBIBYTE, "cuda:0")], [probe("cuda:0", flops=50e12, compute_dtype="fp16")], 1)
    assert found == TargetGpu("GPU 0: card 0", 10 * GIBIBYTE, "cuda:0", Rates(50e12, 2.9e12))


@pytest.mark.parametrize(
    ("capability", "wanted", "expected"),
    [((7, 5), "auto", "fp16"), ((9, 0), "auto", "bf16"), ((9, 0), "fp16", "fp16"), ((7, 5), "fp32", "fp32")],
)
def test_the_type_and_what_a_gpu_can_are_those_of_the_one_that_is_here(
    capability: tuple[int, int], wanted: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_types, "capability_of", lambda device: capability)
    monkeypatch.setattr(select, "has_triton", lambda device: True)
    card = TargetGpu("a card", 16 * GIBIBYTE, "cuda:0", None)
    config, able = for_gpu(small(compute_dtype=wanted), card, Silent())
    assert config.compute_dtype == expected
    assert able is not None
    assert (able.flash_attention, able.triton) == (capability >= (8, 0), True)


def test_a_gpu_that_is_not_here_has_bf16_and_everything() -> None:
    for card in (None, TargetGpu("a card", 12 * GIBIBYTE, None, None)):
        for wanted, expected in (("auto", "bf16"), ("fp16", "fp16")):
            assert for_gpu(small(compute_dtype=wanted), card, Silent()) == (small(compute_dtype=expected), None)


def test_cards_that_torch_does_not_see_or_that_hide_their_memory_are_none():
    assert freest_gpu([gpu(0, 10 * GIBIBYTE, None), gpu(1, None, "cuda:0")], [], 1) is None
