"""On an NVIDIA GPU: a plan's predicted memory is enough for it. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.models import random_model
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import Config, resolve
from llmft_cli.training.device_memory import hold_to
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.loop.smaller_passes import memory_use
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.decide import longest_batches, predicted_options
from llmft_cli.training.planning.options import FRUGAL_OPTIM, Option, choose
from llmft_cli.training.planning.simulation import full_batch
from llmft_cli.training.profiling.measuring import Measured, measure
from llmft_cli.training.step.tuned_model import apply_plan, make_trainable
from llmft_cli.training.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("segments_that_grow")]

DEVICE = torch.device("cuda", 0)
GIBIBYTE = 2**30
TOKENS, LAYERS = 2048, 8


@pytest.fixture(autouse=True)
def whole_card() -> Iterator[None]:
    give_back()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    give_back()


def give_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def seven_b_wide() -> LlamaConfig:
    """Llama-2-7B with a quarter of its layers."""
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )


def settings(sequences: int, **flags: Any) -> Config:
    return resolve({"batch_size": sequences, "gradient_accumulation_steps": 1, "max_seq_length": TOKENS, **flags})


def predicted(config: Config, kind: str) -> Option:
    """The plan of a kind on a GPU with unlimited memory, with all sequences in one pass."""
    found = predicted_options(seven_b_wide(), config, torch.bfloat16, longest_batches(config), None)
    option = choose([one for one in found if one.plan.batch_size == config.batch_size], None, kind)
    assert option is not None
    return option


def measured_within(budget_bytes: int, config: Config, plan: Plan) -> Measured:
    """Steps of the plan, limited to the budget before the weights are created."""
    hold_to(budget_bytes, DEVICE)
    base = random_model.build(seven_b_wide(), DEVICE, "nf4", torch.bfloat16)
    model = make_trainable(base, config, "random")
    apply_plan(model, plan)
    return measure(model, full_batch(plan.batch_size, TOKENS), plan.optim)


@pytest.mark.parametrize(
    ("sequences", "kind", "flags"),
    [(1, "frugal", {}), (1, "fast", {}), (4, "fast", {}), (4, "fast", {"gradient_checkpointing": True}), (4, "frugal", {})],
)
def test_a_plan_trains_in_what_it_is_said_to_need(sequences: int, kind: str, flags: dict[str, Any]) -> None:
    config = settings(sequences, **flags)
    option = predicted(config, kind)
    assert option.plan.embeddings_on_cpu == (kind == "frugal")
    measured = measured_within(option.required_bytes, config, option.plan)
    assert measured.peak_bytes == pytest.approx(option.breakdown.total, rel=0.03)
    assert measured.reserved_bytes + measured.context_bytes <= option.required_bytes


def test_embeddings_on_the_cpu_are_as_much_less_on_the_card() -> None:
    config = settings(1)
    plans = [Plan(1, 1, LAYERS, FRUGAL_OPTIM, on_cpu) for on_cpu in (False, True)]
    peaks = []
    for plan in plans:
        peaks.append(measured_within(12 * GIBIBYTE, config, plan).peak_bytes)
        give_back()
    assert peaks[0] - peaks[1] == pytest.approx(32_000 * 4096 * 2, rel=0.02)


def test_the_budget_is_held() -> None:
    config = settings(4)
    option = predicted(config, "frugal")
    budget = option.required_bytes - GIBIBYTE
    with pytest.raises(torch.OutOfMemoryError):
        measured_within(budget, config, option.plan)
    used = memory_use(DEVICE)
    assert used is not None
    assert used.total == pytest.approx(budget, abs=1024)
    assert used.reserved + used.others <= used.total


def trained(run: RunDir, **flags: Any) -> TrainResult:
    values = {"device": "cuda", "max_steps": 8, "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 5e-3}
    return train(run, resolve(values | flags, saved=run.saved_settings("prepare")), Silent(), overwrite=True)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_whole_training_with_embeddings_on_the_cpu(quantization: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """accelerate moves a whole dense model to the GPU, but not a quantised one."""
    words = ["red", "green", "blue", "white", "black", "amber", "violet"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is {one} {other}?"},
                {"role": "assistant", "content": f"{one}, not {other}."},
            ]
        }
        for one in words
        for other in words
    ]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path / "run")
    prepare(run, [str(data)], resolve({"model": str(tiny_model_dir), "max_seq_length": 96, "val_size": 6.0}), Silent())
    results = []
    for on_cpu in (False, True):
        plan = tmp_path / f"{on_cpu}.json"
        spelled = {"batch_size": 2, "gradient_accumulation_steps": 1, "checkpointed_layers": 2, "optim": "adamw_torch_fused"}
        plan.write_text(json.dumps(spelled | {"embeddings_on_cpu": on_cpu}))
        give_back()  # the trainer before is in a cycle of references
        results.append(trained(run, plan=str(plan), quantization=quantization, max_vram=4 * GIBIBYTE))
    assert [result.plan["embeddings_on_cpu"] for result in results] == [False, True]
    assert results[1].train_loss == pytest.approx(results[0].train_loss, rel=1e-3)
    assert results[1].eval_loss == pytest.approx(results[0].eval_loss, rel=1e-3)
    assert results[1].peak_memory_bytes < results[0].peak_memory_bytes
