"""Disk and RAM as computed by hand, as measured in whole runs, and in a small training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from llmft_cli.base.libraries import configure_libraries
from llmft_cli.base.reporter import Silent
from llmft_cli.fit.host_resources import HostResources, checkpoint_bytes, host_resources, merging_ram, most_checkpoints
from llmft_cli.models import loading, model_source, random_model
from llmft_cli.models.adapters import add_adapter
from llmft_cli.models.known_configs import known_shape, llama
from llmft_cli.settings.config import resolve
from llmft_cli.training.step.checkpointing import checkpoint_layers
from llmft_cli.training.step.tuned_model import make_trainable

RECORDED = Path(__file__).parents[3] / "benchmarks" / "results" / "workflow-llama-2-7b-h100.json"
MEBIBYTE = 2**20
LLAMA_2_7B = "meta-llama/Llama-2-7b-hf"
# By layers and heads of the published shapes: embeddings, and per layer attention, three projections and two norms.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    LLAMA_2_7B: 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
}
# 32 layers, rank 16: q, k, v, o are 4096 x 4096, and three projections between 4096 and 11008.
LLAMA_2_7B_ADAPTER = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    configure_libraries()


def shape_named(name: str) -> Any:
    if name == "llama of 4 layers":
        from transformers import LlamaConfig

        return LlamaConfig(**llama(32_000, 4096, 11_008, 4, 32, 32, 4096))
    return known_shape(name)


def tuned(name: str, checkpointed_layers: int | None = None, **settings: Any) -> Any:
    base = random_model.build(shape_named(name), torch.device("meta"), "nf4", torch.bfloat16)
    model = make_trainable(base, resolve(settings), name)
    checkpoint_layers(model, checkpointed_layers)
    return model


@pytest.fixture(scope="module")
def llama_2_7b() -> Any:
    return tuned(LLAMA_2_7B)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_what_is_downloaded(name: str) -> None:
    base = random_model.build(known_shape(name), torch.device("meta"), "nf4", torch.bfloat16)
    found = host_resources(base, resolve({}), weights_here=False)
    assert found.parameters == PARAMETERS[name]
    assert found.model_download_bytes == found.mapped_weights_bytes == pytest.approx(2 * PARAMETERS[name], rel=2e-4)
    assert host_resources(base, resolve({}), weights_here=True).model_download_bytes == 0


def test_llama_2_7b_with_the_defaults_on_a_gpu(llama_2_7b: Any) -> None:
    found = host_resources(llama_2_7b, resolve({}), weights_here=True)
    checkpoint = LLAMA_2_7B_ADAPTER * (4 + 8)
    assert found == HostResources(
        parameters=6_738_415_616,
        model_download_bytes=0,
        training_disk_bytes=pytest.approx(3 * checkpoint, rel=0.005),
        # The process, and the embedding on its way to the GPU.
        training_ram_bytes=1_700_000_000 + 32_000 * 4096 * 2,
        merging_disk_bytes=pytest.approx(2 * 6_738_415_616, rel=0.001),
        # The process, the model on its way to the file, and the logits of 8 rows of 512 tokens twice.
        merging_ram_bytes=pytest.approx(1.7e9 + 2 * 6_738_415_616 + 2 * 8 * 512 * 32_000 * 4, rel=0.001),
        mapped_weights_bytes=pytest.approx(2 * 6_738_415_616, rel=0.001),
    )


def test_dense_weights_are_loaded_by_four_threads(llama_2_7b: Any) -> None:
    quantized, dense = (
        host_resources(llama_2_7b, resolve({"quantization": kind}), weights_here=True) for kind in ("nf4", "none")
    )
    assert dense.training_ram_bytes - quantized.training_ram_bytes == 3 * 32_000 * 4096 * 2


@pytest.mark.parametrize(
    ("optim", "state_bytes", "ram_bytes"),
    [
        ("adamw_torch", 8, 0),
        ("adamw_8bit", 2.03, 0),
        ("paged_adamw_8bit", 2.03, 2),
        ("paged_adamw_32bit", 8, 8),
        ("sgd", 0, 0),
    ],
)
def test_the_optimizer_state_is_stored_and_paged_state_may_come_to_the_host(
    llama_2_7b: Any, optim: str, state_bytes: float, ram_bytes: float
) -> None:
    assert checkpoint_bytes(llama_2_7b, optim) == pytest.approx(LLAMA_2_7B_ADAPTER * (4 + state_bytes), rel=0.005)
    plain, found = (host_resources(llama_2_7b, resolve({"optim": name}), weights_here=True) for name in ("sgd", optim))
    more = found.training_ram_bytes - plain.training_ram_bytes
    # Only tensors of 100,000 values are paged: one of the two adapters of gate, up and down.
    assert more == 32 * 3 * 16 * 11_008 * ram_bytes


@pytest.mark.slow
def test_a_merge_on_a_gpu_holds_a_shard_of_the_model_at_a_time() -> None:
    base = random_model.build(known_shape("meta-llama/Llama-2-70b-hf"), torch.device("meta"), "nf4", torch.bfloat16)
    assert merging_ram(base, probe_tokens=0) == 1_700_000_000 + 50 * 10**9


def test_the_recorded_merge_on_an_h100(llama_2_7b: Any) -> None:
    stages = json.loads(RECORDED.read_text(encoding="utf-8"))["stages"]
    [merge] = [stage["result"] for stage in stages if stage["result"]["command"] == "merge"]
    predicted = merging_ram(llama_2_7b, merge["verification"]["tokens"])
    assert predicted == pytest.approx(merge["peak_rss_bytes"], rel=0.05)


@pytest.mark.parametrize(("limit", "val_size", "most"), [(1, 0, 2), (1, 0.05, 3), (2, 0.05, 3), (5, 10, 6)])
def test_the_best_checkpoint_and_the_one_being_written_count(limit: int, val_size: float, most: int) -> None:
    assert most_checkpoints(resolve({"save_total_limit": limit, "val_size": val_size})) == most


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_training_writes_as_much(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rising held-out loss makes the first checkpoint the best, so it is kept next to the last and the new one."""
    import transformers
    from transformers import trainer as transformers_trainer

    full: list[int] = []
    clear = transformers_trainer.rotate_checkpoints

    def count_and_clear(*arguments: Any, **options: Any) -> None:
        full.append(len(list(tmp_path.glob("checkpoint-*"))))
        clear(*arguments, **options)

    monkeypatch.setattr(transformers_trainer, "rotate_checkpoints", count_and_clear)
    config = resolve({"lora_r": 512, "save_total_limit": 1})
    trainer = make_trainer(tiny_model_dir, tmp_path, config, transformers)
    predicted = checkpoint_bytes(trainer.model, "adamw_torch")
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert full == [1, 2, 3, most_checkpoints(config)]
    assert bytes_in(tmp_path / "checkpoint-1") == pytest.approx(predicted, rel=0.01)


def make_trainer(model_dir: Path, folder: Path, config: Any, transformers: Any) -> Any:
    import datasets

    from llmft_cli.training.batches.collate import collate
    from llmft_cli.training.batches.sequences import Sequences
    from llmft_cli.training.loop.trainer import QLoRATrainer

    base = loading.load_base(model_source.resolve(str(model_dir), Silent()), torch.device("cpu"), dtype=torch.float32)
    transformers.set_seed(1)
    rows = datasets.Dataset.from_list([{"input_ids": [7] * 9, "labels": [7] * 9}] * 8)
    other_rows = datasets.Dataset.from_list([{"input_ids": [9] * 9, "labels": [9] * 9}] * 2)
    return QLoRATrainer(
        model=add_adapter(base, config, "tiny"),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            save_total_limit=config.save_total_limit,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            log_level="error",
        ),
        train_dataset=Sequences.one_each(rows),
        eval_dataset=Sequences.one_each(other_rows),
        data_collator=collate,
    )


def test_offloaded_activations_are_in_the_host_memory(llama_2_7b: Any) -> None:
    """64 MiB for each of 32 layers; three sequences take as much as four, because memory is pinned in powers of two."""
    kept = host_resources(llama_2_7b, resolve({}), weights_here=True).training_ram_bytes
    for tokens in (3 * 2048, 4 * 2048):
        found = host_resources(llama_2_7b, resolve({}), weights_here=True, offloaded_tokens=tokens)
        assert found.training_ram_bytes - kept == 32 * 64 * 2**20
