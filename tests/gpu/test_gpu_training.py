"""On an NVIDIA GPU: the same stages as in the CPU tests. Run by hand: pytest -m gpu tests/gpu"""

import json

import pytest
import torch

from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.evaluation.evaluate import evaluate
from llmft_cli.gpu.check import check, require_gpu
from llmft_cli.merging.merge import merge
from llmft_cli.models import loading, model_source
from llmft_cli.models.builtin import cache_dir
from llmft_cli.run_dir.run import RUNS_ROOT, RunDir
from llmft_cli.settings.config import resolve
from llmft_cli.training.train import train

pytestmark = pytest.mark.gpu

COLOURS = ["red", "green", "blue", "white", "black", "amber", "violet", "brown", "grey", "pink"]


@pytest.fixture
def run(tmp_path, tiny_model_dir) -> RunDir:
    """A prepared run of fifty short questions on the tiny model."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is {one} {other}?"},
                {"role": "assistant", "content": f"{one}, not {other}."},
            ]
        }
        for one in COLOURS
        for other in COLOURS[:5]
    ]
    file = tmp_path / "colours.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path / "run")
    prepare(run, [str(file)], resolve({"model": str(tiny_model_dir), "max_seq_length": 96, "val_size": 6.0}), Silent())
    return run


def train_on(run: RunDir, device: str, **flags):
    settings = {"device": device, "max_steps": 8, "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 5e-3}
    return train(run, resolve(settings | flags, saved=run.saved_settings("prepare")), Silent(), overwrite=True)


def test_the_probe_computes_on_the_card():
    report = check(Silent(), cache_dir(), RUNS_ROOT)
    require_gpu(report)
    assert report.nf4_probe.device == "cuda:0"
    assert report.nf4_probe.max_relative_error == pytest.approx(0.093, abs=0.01)
    assert report.gpus[0].compute_capability is not None
    assert report.gpus[0].memory_free_bytes > 0


def test_losses_on_the_card_are_those_on_the_cpu(run):
    train_on(run, "cpu")
    on_cpu = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    result = train_on(run, "cuda")
    on_card = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert result.plan["device"] == "cuda:0"
    assert result.plan["checkpointed_layers"] == 0  # the card has room for everything
    assert result.plan["required_bytes"] > result.plan["predicted_peak_bytes"] > 0
    assert 0 < result.peak_memory_bytes < 2**30
    for cpu, card in zip(on_cpu, on_card, strict=True):
        key = "loss" if "loss" in cpu else "eval_loss"
        assert card[key] == pytest.approx(cpu[key], rel=0.02)


@pytest.mark.parametrize("flags", [{"quantization": "int8"}, {"optim": "paged_adamw_8bit"}, {"use_dora": True}])
def test_what_only_a_card_does_well(run, flags):
    before = train_on(run, "cuda", max_steps=1, warmup_ratio=0.0, **flags).train_loss
    assert train_on(run, "cuda", **flags).eval_loss < before


def test_evaluate_and_merge_on_the_card(run):
    train_on(run, "cuda")
    config = resolve({"device": "cuda", "max_new_tokens": 8}, saved=run.saved_settings("prepare", "train"))
    arms = evaluate(run, None, None, config, Silent()).arms
    assert arms["tuned"].loss < arms["base"].loss
    assert merge(run, config, Silent()).verification.passed
    written = loading.load_base(model_source.resolve(str(run.merged), Silent()), torch.device("cuda", 0), torch.bfloat16)
    assert next(written.parameters()).dtype == torch.bfloat16
