"""Training goes on from an adapter: the run's own, another run's, or one from elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmft_cli.base.errors import ConfigError, Interrupted, ModelError, StageError
from llmft_cli.base.files import hash_path
from llmft_cli.base.reporter import Silent
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import StageRecord
from llmft_cli.training.loop import loss_chart
from llmft_cli.training.starting_adapter import adapter_at, own_adapter, read_adapter

from .weather import InterruptAt, adapter_of, prepare_run, same, train_run

WEIGHTS = "adapter_model.safetensors"


def trained_run(path: Path, data_file: Path, tiny_model_dir: Path, **flags) -> RunDir:
    run = RunDir(path)
    prepare_run(run, data_file, tiny_model_dir)
    train_run(run, **flags)
    return run


def first_loss(run: RunDir) -> float:
    return loss_chart.read_metrics(run.metrics)[1]["loss"]


def adapter_config(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_finished_run_goes_on_from_its_adapter(tmp_path, data_file, tiny_model_dir):
    run = trained_run(tmp_path / "run", data_file, tiny_model_dir)
    before, figures, entry = adapter_of(run), run.metrics.read_text(), run.entry("train")
    first = first_loss(run)
    result = train_run(run, start=own_adapter(run), max_steps=2)
    assert result.steps == 2
    assert first_loss(run) < first  # of the same first batch
    assert not same(adapter_of(run), before)
    assert same(load_file(run.path / "earlier" / "1" / "adapter" / WEIGHTS), before)
    assert (run.path / "earlier" / "1" / "metrics.jsonl").read_text() == figures
    earlier = run.ledger()["stages"]["train/1"]
    assert earlier["outputs"] == {f"earlier/1/{name}": sha256 for name, sha256 in entry["outputs"].items()}
    assert run.lost_output(earlier) is None
    assert {**earlier, "outputs": entry["outputs"]} == entry
    assert run.require("train")["inputs"]["earlier/1/adapter"] == entry["outputs"]["adapter"]
    train_run(run, start=own_adapter(run), max_steps=1)
    assert [name for name in run.ledger()["stages"] if name.startswith("train/")] == ["train/1", "train/2"]


def test_going_on_begins_with_the_weights_of_the_adapter(tmp_path, data_file, tiny_model_dir):
    """With a learning rate of nearly nothing, the adapter stays what it was."""
    run = trained_run(tmp_path / "run", data_file, tiny_model_dir)
    before = adapter_of(run)
    train_run(run, start=own_adapter(run), max_steps=1, learning_rate=1e-12)
    after = adapter_of(run)
    assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before)


def test_going_on_that_was_interrupted_is_resumed_to_the_same_adapter(tmp_path, data_file, tiny_model_dir):
    runs = [trained_run(tmp_path / name, data_file, tiny_model_dir) for name in ("whole", "broken")]
    whole, broken = runs
    flags = {"eval_steps": 2.0, "lora_dropout": 0.1}
    train_run(whole, start=own_adapter(whole), **flags)
    with pytest.raises(Interrupted):
        train_run(broken, start=own_adapter(broken), reporter=InterruptAt(2), **flags)
    with pytest.raises(StageError, match=r"train has not finished \(interrupted\)") as raised:
        own_adapter(broken)
    assert raised.value.hint.endswith("--resume")
    train_run(broken, resume=True)
    assert same(adapter_of(broken), adapter_of(whole))


class InterruptAtOnce(Silent):
    """Ctrl-C while the first step is computed, before any checkpoint."""

    def track(self, label, *, total, done=0):
        raise KeyboardInterrupt


def test_going_on_that_stopped_before_its_first_checkpoint_is_begun_again(tmp_path, data_file, tiny_model_dir):
    """The adapter was set aside, and no command named a way back to it."""
    runs = [trained_run(tmp_path / name, data_file, tiny_model_dir) for name in ("whole", "broken")]
    whole, broken = runs
    train_run(whole, start=own_adapter(whole), max_steps=2)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_run(broken, start=own_adapter(broken), max_steps=2, reporter=InterruptAtOnce())
        again = f"llmft train {broken.path} --continue"
        with pytest.raises(StageError, match="has not finished") as raised:
            broken.require("train")
        assert raised.value.hint == f"run first: {again}"
        with pytest.raises(StageError, match="has no checkpoint to resume from") as raised:
            train_run(broken, resume=True)
        assert raised.value.hint == f"start with: {again}"
    train_run(broken, start=own_adapter(broken), max_steps=2)
    assert same(adapter_of(broken), adapter_of(whole))
    assert [folder.name for folder in broken.earlier.iterdir()] == ["1"]
    assert hash_path(broken.earlier / "1/adapter") == hash_path(whole.earlier / "1/adapter")
    assert broken.ledger()["stages"].keys() == whole.ledger()["stages"].keys()


def test_an_adapter_is_set_aside_once(tmp_path, data_file, tiny_model_dir, monkeypatch):
    """A command that was killed right after it had set the adapter aside left a copy of its own."""
    run = trained_run(tmp_path / "run", data_file, tiny_model_dir)

    def stopped(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageRecord, "begin", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_run(run, start=own_adapter(run), max_steps=1)
    train_run(run, start=own_adapter(run), max_steps=1)
    assert [name for name in run.ledger()["stages"] if name.startswith("train/")] == ["train/1"]
    assert [folder.name for folder in (run.path / "earlier").iterdir()] == ["1"]


def test_a_failed_start_of_going_on_leaves_the_run_as_it_was(tmp_path, data_file, tiny_model_dir):
    run = trained_run(tmp_path / "run", data_file, tiny_model_dir)
    before = run.entry("train")
    with pytest.raises(ConfigError, match=r"--lora-r is 8, but the adapter .* has 4") as raised:
        train_run(run, start=own_adapter(run), lora_r=8)
    assert raised.value.hint == "omit --lora-r, or train a new adapter without --continue and --from-adapter"
    assert run.require("train") == before


@pytest.mark.parametrize("form", ["run", "its adapter", "a PEFT directory"])
def test_a_run_starts_from_another_adapter(tmp_path, data_file, tiny_model_dir, form):
    first = trained_run(tmp_path / "first", data_file, tiny_model_dir)
    shutil.copytree(first.adapter, tmp_path / "peft")
    path = {"run": first.path, "its adapter": first.adapter, "a PEFT directory": tmp_path / "peft"}[form]
    start = adapter_at(path)
    run = RunDir(tmp_path / "second")
    prepare_run(run, data_file, tiny_model_dir)
    flags = {name: value for name, value in start.settings.items() if name != "lora_r"}
    train_run(run, start=start, learning_rate=1e-12, max_steps=1, **flags)
    before, after = adapter_of(first), adapter_of(run)
    assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before)
    assert run.require("train")["inputs"][str(start.folder.resolve())] == start.sha256
    assert not (run.path / "earlier").exists()


def test_settings_of_an_adapter_become_those_of_the_run(tmp_path, data_file, tiny_model_dir):
    run = trained_run(tmp_path / "run", data_file, tiny_model_dir, lora_alpha=7.0, target_modules="q_proj,v_proj")
    expected = {"lora_r": 4, "lora_alpha": 7.0, "target_modules": "q_proj,v_proj", "use_rslora": False, "use_dora": False}
    assert read_adapter(run.adapter).settings == expected
    assert adapter_at(run.path).settings == expected


def test_an_adapter_of_another_base_is_refused(tmp_path, data_file, tiny_model_dir):
    other_base = tmp_path / "other-base"
    shutil.copytree(tiny_model_dir, other_base)
    weights = load_file(other_base / "model.safetensors")
    weights["model.embed_tokens.weight"][0, 0] += 1
    save_file(weights, other_base / "model.safetensors", {"format": "pt"})
    first = trained_run(tmp_path / "first", data_file, other_base)
    run = RunDir(tmp_path / "second")
    prepare_run(run, data_file, tiny_model_dir)
    with pytest.raises(ModelError, match=f"was trained on {other_base}, but this run uses {tiny_model_dir}"):
        train_run(run, start=adapter_at(first.path))
    adapter_config(first.adapter, base_model_name_or_path="someone/other")
    with pytest.raises(ModelError, match=f"was trained on someone/other, but this run uses {tiny_model_dir}"):
        train_run(run, start=read_adapter(first.adapter))


def test_what_is_not_a_plain_lora_adapter_is_refused(tmp_path, data_file, tiny_model_dir):
    run = trained_run(tmp_path / "run", data_file, tiny_model_dir, max_steps=2)
    folder = tmp_path / "peft"
    shutil.copytree(run.adapter, folder)
    for changes, what in (
        ({"peft_type": "LOHA"}, "has type LOHA"),
        ({"peft_type": "LORA", "bias": "all"}, "has trained biases"),
        ({"bias": "none", "rank_pattern": {"q_proj": 2}}, "has rank_pattern"),
    ):
        adapter_config(folder, **changes)
        with pytest.raises(ModelError, match=what):
            read_adapter(folder)
    with pytest.raises(ModelError, match="has no adapter"):
        read_adapter(tmp_path)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        read_adapter(folder)


@pytest.mark.parametrize(("name", "value"), [("r", "16"), ("r", 0), ("r", None), ("lora_alpha", []), ("use_dora", 1)])
def test_values_that_no_adapter_has_are_refused(tmp_path, data_file, tiny_model_dir, name, value):
    """They became settings of the run unchecked, and ended in "a bug of llmft"."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", name: value}))
    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=f"is damaged: {name} is"):
        read_adapter(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path, data_file, tiny_model_dir):
    first = trained_run(tmp_path / "first", data_file, tiny_model_dir, max_steps=2)
    folder = tmp_path / "peft"
    shutil.copytree(first.adapter, folder)
    run = RunDir(tmp_path / "second")
    prepare_run(run, data_file, tiny_model_dir)
    flags = {name: value for name, value in read_adapter(folder).settings.items() if name != "lora_r"}
    adapter_config(folder, r=8)
    with pytest.raises(ModelError, match="does not fit the model"):
        train_run(run, start=read_adapter(folder), lora_r=8, **flags)
    (folder / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        read_adapter(folder)
    assert train_run(run, max_steps=2).steps == 2


def test_a_changed_adapter_is_not_trained_further(tmp_path, data_file, tiny_model_dir):
    run = trained_run(tmp_path / "run", data_file, tiny_model_dir, max_steps=2)
    (run.adapter / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(StageError, match="is missing or has changed since it was trained"):
        own_adapter(run)
