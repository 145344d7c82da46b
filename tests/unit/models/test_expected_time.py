"""Commands that take long on a CPU say so before they start."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if not find_spec("torch"):
    pytest.skip("needs torch", allow_module_level=True)

import torch

from llmft_cli.base.reporter import Silent
from llmft_cli.models import expected_time
from llmft_cli.models.expected_time import FORWARD, TRAINING, linear_weights, warn_if_long
from llmft_cli.settings.config import resolve

MODEL = torch.nn.Sequential(torch.nn.Embedding(1000, 50), torch.nn.Linear(50, 20), torch.nn.ReLU(), torch.nn.Linear(20, 100))
WEIGHTS = 50 * 20 + 20 * 100


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def said(tokens: int, operations: int, rate: float, monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> list[str]:
    """The warnings on a CPU with this many operations per second in a training step."""
    asked = []

    def flops_per_second(torch: object, device: str, name: str) -> float:
        asked.append((device, name))
        return rate / expected_time.SHARE_OF_RATE

    monkeypatch.setattr(expected_time, "flops_per_second", flops_per_second)
    warnings = Warnings()
    warn_if_long("training", MODEL, tokens, operations, torch.device(device), "fp32", "use a GPU", warnings)
    assert asked == ([("cpu", "fp32")] if device == "cpu" else [])
    return warnings.said


def test_more_than_an_hour_is_told_with_its_figures_and_what_makes_it_less(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = TRAINING * WEIGHTS * 2.5  # 2.5 tokens a second
    expected = "training will take about 6h20m on this CPU (57,000 tokens at about 2.5 tokens/s): use a GPU"
    assert said(57_000, TRAINING, rate, monkeypatch) == [expected]


def test_an_hour_or_less_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(3600, FORWARD, FORWARD * WEIGHTS, monkeypatch) == []


def test_nothing_is_measured_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(10**12, FORWARD, 1.0, monkeypatch, device="cuda") == []


def test_a_layer_with_an_adapter_counts_once_and_so_does_its_adapter() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmft_cli.models.adapters import add_adapter

    shape = LlamaConfig(vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
    model = add_adapter(LlamaForCausalLM(shape), resolve({"lora_r": 4}), "tiny")
    of_the_layer = 4 * 64 * 64 + 3 * 64 * 128
    of_the_adapters = 4 * (4 * (64 + 64)) + 3 * (4 * (64 + 128))
    assert linear_weights(model) == of_the_layer + of_the_adapters + 64 * 320
