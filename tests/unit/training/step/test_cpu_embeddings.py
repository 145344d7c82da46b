"""Input embeddings in host memory: the same training, with less GPU memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmft_cli.base.errors import ConfigError, Interrupted
from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.models import known_configs, loading, model_source
from llmft_cli.models.adapters import load_adapter, save_adapter
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.memory import CUBLAS_BYTES, breakdown_of, holdings
from llmft_cli.training.planning.plan_files import read_plan
from llmft_cli.training.planning.simulation import full_batch, simulate
from llmft_cli.training.step.cpu_embeddings import keep_embeddings_on_cpu, movable_embeddings
from llmft_cli.training.step.loss import summed_loss
from llmft_cli.training.step.tuned_model import apply_plan, make_trainable
from llmft_cli.training.train import train

from ..meta_models import on_meta, shape_of, small_shape
from ..tiny_training import sequences

CPU = torch.device("cpu")
PLAN = {"batch_size": 2, "gradient_accumulation_steps": 2, "checkpointed_layers": 0, "optim": "adamw_torch"}


def tiny(tiny_model_dir: Path, embeddings_on_cpu: bool, quantization: str = "nf4", **flags: Any) -> Any:
    base = loading.load_base(model_source.resolve(str(tiny_model_dir), Silent()), CPU, torch.bfloat16, quantization)
    loading.keep_training_layout(base)
    torch.manual_seed(1)
    model = make_trainable(base, resolve({"lora_r": 4, **flags}), "tiny")
    apply_plan(model, Plan(**PLAN | {"embeddings_on_cpu": embeddings_on_cpu}))
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    batch = collate(list(sequences(4, packing=True)))
    model.train()
    summed_loss(model, batch).backward()
    return {name: weights.grad for name, weights in model.named_parameters() if weights.requires_grad}


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_loss_and_gradients_stay_as_they_are(quantization: str, tiny_model_dir: Path) -> None:
    batch = collate(list(sequences(4, packing=True)))
    here, there = (tiny(tiny_model_dir, on_cpu, quantization) for on_cpu in (False, True))
    assert summed_loss(here, batch).item() == summed_loss(there, batch).item() > 0
    expected, found = gradients(here), gradients(there)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(gradient.any() for gradient in found.values())


def test_what_moves_the_model_leaves_the_embeddings_where_they_are(tiny_model_dir: Path) -> None:
    """accelerate moves a dense model as a whole; the `meta` device stands for the card."""
    model = tiny(tiny_model_dir, True, "none").to("meta")
    weights = model.get_input_embeddings().weight
    assert weights.device.type == "cpu"
    assert weights.any()
    assert model.device.type == "meta"
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert not [name for name in model.state_dict() if "embed_tokens" in name]


def test_what_ids_stand_for_goes_where_the_ids_came_from(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(tiny_model_dir, True)
    brought = []
    ids = torch.tensor([[3, 1]])
    expected = model.get_input_embeddings().weight[ids]

    class OnCard(torch.Tensor):
        """Ids that say they are on a card, until they are copied to the CPU."""

        device = torch.device("meta")

        def cpu(self) -> torch.Tensor:  # type: ignore[override]
            brought.append("ids")
            return ids

    result = model.get_input_embeddings()(ids.as_subclass(OnCard))
    assert brought == ["ids"]
    assert result.device.type == "meta"
    assert result.shape == expected.shape
    assert torch.equal(model.get_input_embeddings()(ids), expected)


def test_the_adapter_on_disk_is_the_same(tiny_model_dir: Path, tmp_path: Path) -> None:
    for on_cpu in (False, True):
        model = tiny(tiny_model_dir, on_cpu, init_lora_weights="gaussian")
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if "lora_B" in name:
                    weights.fill_(0.01)
        save_adapter(model, tmp_path / str(on_cpu))
    here, there = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("False", "True"))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    base = loading.load_base(model_source.resolve(str(tiny_model_dir), Silent()), CPU, torch.bfloat16)
    assert load_adapter(base, tmp_path / "True").device.type == "cpu"


class StopAt(Silent):
    """Asks to stop when the held-out loss of a step is told."""

    def __init__(self, step: int) -> None:
        self._step = step

    def note(self, message: str) -> None:
        import os
        import signal

        if message.startswith(f"step {self._step}:"):
            os.kill(os.getpid(), signal.SIGINT)


def prepared(folder: Path, tiny_model_dir: Path) -> RunDir:
    words = ["sun", "rain", "wind", "snow", "frost", "mist", "cloud"]
    rows = [
        {"messages": [{"role": "user", "content": f"Is it {one}?"}, {"role": "assistant", "content": f"{one}, then {other}."}]}
        for one in words
        for other in words
    ]
    data = folder / "weather.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(folder / "run")
    prepare(run, [str(data)], resolve({"model": str(tiny_model_dir), "max_seq_length": 96, "val_size": 6.0}), Silent())
    return run


def trained(run: RunDir, plan: Path, resume: bool = False, reporter: Silent | None = None, **flags: Any) -> TrainResult:
    settings = {
        "max_steps": 4,
        "eval_steps": 2.0,
        "learning_rate": 5e-3,
        "lora_r": 4,
        "device": "cpu",
        "plan": str(plan),
        **PLAN,
    }
    settings.pop("checkpointed_layers")
    stages = ("prepare", "train") if resume else ("prepare",)
    config = resolve({**settings, **flags}, saved=run.saved_settings(*stages))
    return train(run, config, reporter or Silent(), resume=resume, overwrite=not resume)


def written_plan(folder: Path, **changes: Any) -> Path:
    file = folder / "plan.yaml"
    file.write_text(json.dumps(PLAN | changes))  # JSON is YAML
    return file


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_training_evaluating_and_resuming_give_the_same_adapter(
    quantization: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    run = prepared(tmp_path, tiny_model_dir)
    without = trained(run, written_plan(tmp_path, embeddings_on_cpu=False), quantization=quantization)
    expected = load_file(run.adapter / "adapter_model.safetensors")
    plan = written_plan(tmp_path, embeddings_on_cpu=True)
    with pytest.raises(Interrupted):
        trained(run, plan, reporter=StopAt(2), quantization=quantization)
    result = trained(run, plan, resume=True, quantization=quantization)
    assert result.plan == without.plan | {"embeddings_on_cpu": True}
    assert result.eval_loss == without.eval_loss is not None
    found = load_file(run.adapter / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("flags", "changes"), [({}, {"tie_word_embeddings": True}), ({"target_modules": "embed_tokens,q_proj"}, {})]
)
def test_tied_and_adapted_embeddings_stay(flags: dict[str, Any], changes: dict[str, Any]) -> None:
    model = on_meta(small_shape(**changes), **flags)
    assert movable_embeddings(model) is None
    with pytest.raises(ConfigError, match=r"embeddings are tied to its output layer, trained or adapted"):
        keep_embeddings_on_cpu(model)


def test_trained_embeddings_stay() -> None:
    model = on_meta(small_shape())
    assert movable_embeddings(model) is model.get_input_embeddings()
    model.get_input_embeddings().weight.requires_grad_(True)
    assert movable_embeddings(model) is None


@pytest.mark.parametrize(
    ("values", "bytes_less"),
    [
        (known_configs.LLAMA_2_7B, 32_000 * 4096 * 2),
        (known_configs.LLAMA_3_8B, 128_256 * 4096 * 2),
        (known_configs.SMOLLM2_135M, 0),
    ],
)
def test_the_prediction_is_less_by_the_embeddings_alone(values: dict[str, Any], bytes_less: int) -> None:
    model = on_meta(shape_of(values | {"num_hidden_layers": 2}))
    step = simulate(model, full_batch(1, 64))
    with_them = breakdown_of(holdings(model), step, "sgd")
    without = breakdown_of(holdings(model), step, "sgd", embeddings_on_cpu=True)
    assert with_them.dense_weights - without.dense_weights == bytes_less
    workspaces = CUBLAS_BYTES if bytes_less else 0  # passes are recorded only with the embeddings on the card
    assert with_them.total - without.total == bytes_less + workspaces


def test_a_plan_file_may_leave_it_out(tmp_path: Path) -> None:
    assert read_plan(written_plan(tmp_path)) == Plan(2, 2, 0, "adamw_torch", False)
    assert read_plan(written_plan(tmp_path, embeddings_on_cpu=True)).embeddings_on_cpu is True
    with pytest.raises(ConfigError, match=r"embeddings_on_cpu in .*: '1' is not true or false"):
        read_plan(written_plan(tmp_path, embeddings_on_cpu=1))
    with pytest.raises(
        ConfigError, match=r"it must have batch_size, gradient_accumulation_steps, checkpointed_layers, optim, may"
    ):
        read_plan(written_plan(tmp_path, lookups_on_cpu=True))
