"""What a training run is refused for before any weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmft_cli.base.errors import ConfigError, DataError, ModelError, StageError
from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.models import loading
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import resolve
from llmft_cli.training.planning.preflight import check_settings
from llmft_cli.training.resume import with_data_settings
from llmft_cli.training.train import train


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """The tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture
def run(tmp_path: Path, model: Path) -> RunDir:
    rows = [[{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "Yes."}] for number in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    made = RunDir(tmp_path / "run")
    prepare(made, [str(file)], resolve({"model": str(model), "val_size": 0}), Silent())
    # As in ledgers of the first version: a model that was exchanged is not recognised by its files, only by its limits.
    ledger = made.ledger()
    del ledger["stages"]["prepare"]["model_files"]
    made.ledger_file.write_text(json.dumps(ledger))
    return made


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr(loading, "load_base", refuse)


def change_config(model: Path, **values: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def start(run: RunDir, reporter: Silent | None = None, **flags: Any) -> None:
    settings = resolve({"device": "cpu", "max_steps": 1, **flags}, saved=run.saved_settings("prepare"))
    train(run, settings, reporter or Silent())


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"target_modules": "q_proj,v_projj"}, "--target-modules v_projj matches no module"),
        ({"target_modules": "mlp"}, "which cannot have an adapter"),
        ({"early_stopping_patience": 2}, r"--early-stopping-patience 2 needs held-out rows, and .*run has none"),
    ],
)
def test_settings_that_do_not_suit(flags: dict[str, Any], said: str, run: RunDir) -> None:
    with pytest.raises(ConfigError, match=said):
        start(run, **flags)


@pytest.mark.usefixtures("never_loaded")
def test_tied_embeddings(run: RunDir, model: Path) -> None:
    change_config(model, tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="--target-modules lm_head: the input embeddings and the output layer"):
        start(run, target_modules="lm_head")


@pytest.mark.usefixtures("never_loaded")
def test_rows_with_ids_that_the_model_does_not_have(run: RunDir, model: Path) -> None:
    """The model was exchanged after `prepare`: training failed with an index out of range."""
    change_config(model, vocab_size=64)
    with pytest.raises(DataError, match=r"has the token id \d+, but .* has embeddings for 64 tokens only") as raised:
        start(run)
    assert raised.value.hint == f"prepare again with: llmft prepare DATA --run {run.path} --overwrite"


@pytest.mark.usefixtures("never_loaded")
def test_rows_that_the_model_has_no_positions_for(run: RunDir, model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 8}))
    with pytest.raises(DataError, match=r"has a row of \d+ tokens, but .* has only 8 positions") as raised:
        start(run)
    assert "--max-seq-length 8 --overwrite" in raised.value.hint


@pytest.mark.usefixtures("never_loaded")
def test_a_model_that_cannot_be_trained(run: RunDir, model: Path) -> None:
    change_config(model, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match=r"already quantised \(gptq\)"):
        start(run)


def test_a_rank_that_only_some_layers_can_have_is_warned_of(run: RunDir, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmft_cli.training.planning.preflight.ORDINARY_RANK", 8)
    change_config(model, num_key_value_heads=1)
    monkeypatch.setattr(loading, "load_base", stop)
    told = Told()
    with pytest.raises(StopIteration):
        start(run, told, lora_r=48)
    assert told.warnings == ["--lora-r 48 is more than the rank that an update of some layers can have (32)"]


def stop(*_: Any) -> None:
    raise StopIteration


def test_patience_without_held_out_rows_is_refused_before_the_data_is_prepared() -> None:
    with pytest.raises(ConfigError) as raised:
        check_settings(resolve({"early_stopping_patience": 3, "val_size": 0}))
    assert raised.value.message == "--early-stopping-patience 3 needs held-out rows, but --val-size is 0"
    check_settings(resolve({"early_stopping_patience": 3}))
    check_settings(resolve({"val_size": 0}))


def test_a_default_length_that_prepare_has_reduced_is_no_other_setting(tmp_path: Path) -> None:
    run, default = RunDir(tmp_path), resolve({})
    assert with_data_settings(run, {"max_seq_length": 512}, default) == resolve({"max_seq_length": 512})
    for prepared, wanted in ((4096, default), (512, resolve({"max_seq_length": 1024}))):
        with pytest.raises(StageError, match=f"was prepared with --max-seq-length {prepared}, not {wanted.max_seq_length}"):
            with_data_settings(run, {"max_seq_length": prepared}, wanted)


def test_what_an_earlier_version_prepared_with_is_no_setting_of_the_data_any_more(tmp_path: Path) -> None:
    """The error named `prepare --packing`, which there is no longer."""
    recorded = {"max_seq_length": 512, "packing": True, "of_long_ago": 3}
    wanted = resolve({"max_seq_length": 512, "packing": False})
    assert with_data_settings(RunDir(tmp_path), recorded, wanted) == wanted
