"""Models without memory for the tests of prediction and planning, and the trainings that an H100 measured."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from llmft_cli.models import known_configs, random_model
from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.settings.config import resolve
from llmft_cli.training.planning.layer_costs import layer_costs
from llmft_cli.training.planning.memory import Breakdown, breakdown_of, holdings
from llmft_cli.training.planning.options import Option, Predictor
from llmft_cli.training.planning.simulation import BatchShape, Step
from llmft_cli.training.planning.speed import REFERENCE_RATES
from llmft_cli.training.step.checkpointing import checkpoint_layers
from llmft_cli.training.step.tuned_model import make_trainable

from ..settled import settled

META = torch.device("meta")
RESULTS = Path(__file__).parents[3] / "benchmarks/results"
RECORD, FAST_RECORD = RESULTS / "memory-h100.json", RESULTS / "memory-fast-h100.json"
SHAPES = {
    "llama-2-7b": known_configs.LLAMA_2_7B,
    "llama-2-13b": known_configs.LLAMA_2_13B,
    "llama-2-70b": known_configs.LLAMA_2_70B,
    "smollm2-135m": known_configs.SMOLLM2_135M,
    "mistral-7b (8 key-value heads)": known_configs.MISTRAL_7B,
    "llama-3-8b (128,256 tokens)": known_configs.LLAMA_3_8B,
}


def shape_of(values: dict[str, Any]) -> transformers.PreTrainedConfig:
    return transformers.AutoConfig.for_model(**values)


def small_shape(layers: int = 2, **changes: Any) -> transformers.PreTrainedConfig:
    """A Llama in every respect but its size: fewer key-value heads than heads, and an output layer of its own."""
    return shape_of(known_configs.llama(640, 128, 256, layers, 4, 2, 512) | changes)


def on_meta(shape: transformers.PreTrainedConfig, checkpointed: int | None = 0, quantization: str = "nf4", **flags: Any) -> Any:
    """A trainable model on the `meta` device with this many checkpointed layers; None means all."""
    base = random_model.build(shape, META, quantization, torch.bfloat16)
    with META:  # PEFT draws an adapter's weights on the CPU otherwise, which takes longer than following a step
        model = make_trainable(base, resolve(flags), "a model")
    checkpoint_layers(model, checkpointed)
    return model


def option_with(predictor: Predictor, checkpointed: int, optim: str, **switches: bool) -> Option:
    """What is predicted of the plan with so many checkpointed layers, this optimizer, and the switches of `Plan`."""
    return predictor.predict(replace(predictor.checkpointed, checkpointed_layers=checkpointed, optim=optim, **switches))


@cache
def recorded() -> list[dict[str, Any]]:
    """The trainings with plain layers that were measured, in their order."""
    cases: list[dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))["cases"]
    return cases


@cache
def recorded_fast() -> list[dict[str, Any]]:
    """The trainings with fast layers that were measured, in their order."""
    cases: list[dict[str, Any]] = json.loads(FAST_RECORD.read_text(encoding="utf-8"))["cases"]
    return cases


def batch_of(case: dict[str, Any]) -> BatchShape:
    sequences, length, rows = case["sequences"], case["length"], case["rows"]
    return BatchShape(sequences, length, sequences * (length - 1), sequences * rows, length // rows)


@cache
def predicted(number: int) -> tuple[Breakdown, Step]:
    """What today's code predicts of the recorded training."""
    case = recorded()[number]
    model = on_meta(shape_of(SHAPES[case["shape"]]), lora_r=case["lora_r"], fast=case["fast"])
    costs = layer_costs(model, batch_of(case))
    assert costs is not None
    step = costs.step(costs.layers if case["checkpointed"] is None else case["checkpointed"])
    return breakdown_of(holdings(model), step, case["optim"]), step


@cache
def fast_model(shape: str, lora_r: int) -> Any:
    return on_meta(shape_of(SHAPES[shape]), None, lora_r=lora_r)


@cache
def predicted_fast(number: int) -> Option:
    """What today's code predicts of the recorded training with fast layers."""
    case = recorded_fast()[number]
    model = fast_model(case["shape"], case["lora_r"])
    predictor = Predictor(model, settled({"batch_size": case["sequences"]}), batch_of(case), REFERENCE_RATES)
    layers = len(decoder_layers(model)) if case["checkpointed"] is None else case["checkpointed"]
    switches = {name: case[name] for name in ("embeddings_on_cpu", "dequantized_weights", "activation_offloading")}
    return option_with(predictor, layers, case["optim"], **switches)
