"""Training end to end on a tiny model: what it writes, and what must not change its result."""

import json
import time

import pytest

from llmft_cli.base.errors import ConfigError, Interrupted, StageError
from llmft_cli.base.reporter import Silent
from llmft_cli.base.stage_times import StageTimes
from llmft_cli.data.store import training_rows
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.sequences import training_sequences
from llmft_cli.training.batches.token_batches import token_batches
from llmft_cli.training.loop.loss_chart import read_metrics
from llmft_cli.training.train import train

from .weather import FLAGS, InterruptAt, adapter_of, prepared_run, same, train_run


def test_training_writes_adapter_figures_chart_and_ledger(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    result = train_run(run, eval_steps=3.0)
    assert result.steps == 6
    assert result.plan["quantization"] == "nf4"
    weights = adapter_of(run)
    assert len(weights) == 2 * 7 * 2  # A and B of seven linears in two layers
    assert json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model_dir)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 3, 6]
    assert rows[-1]["eval_loss"] < rows[3]["loss"]
    assert result.eval_loss == min(row["eval_loss"] for row in rows if "eval_loss" in row)
    assert "<svg" in run.loss_chart.read_text()
    entry = run.entry("train")
    assert entry["status"] == "done"
    assert set(entry["outputs"]) == {"adapter", "metrics.jsonl", "loss.svg"}
    assert entry["model"]["name"] == str(tiny_model_dir)
    assert not list(run.path.rglob("training_args.bin"))


def test_the_times_of_all_stages_are_the_time_of_the_training(tmp_path, data_file, tiny_model_dir):
    times = StageTimes("imports")
    before = time.monotonic()
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    prepared = time.monotonic() - before
    config = resolve({**FLAGS, "max_steps": 4, "eval_steps": 2.0}, saved=run.saved_settings("prepare"))
    result = train(run, config, Silent(), times=times)
    whole = time.monotonic() - before
    assert set(result.timings) == {"imports", "planning", "loading", "first step", "steps", "evaluations", "saves", "end"}
    assert all(seconds > 0 for seconds in result.timings.values())
    assert sum(result.timings.values()) == pytest.approx(whole, abs=0.1)
    assert result.timings["imports"] > prepared
    recorded = run.ledger()["stages"]["train"]["headline"]["timings"]
    assert {name: seconds for name, seconds in recorded.items() if name != "end"} == {
        name: seconds for name, seconds in result.timings.items() if name != "end"
    }


@pytest.mark.slow
def test_evaluating_in_between_gives_the_same_adapter(tmp_path, data_file, tiny_model_dir):
    often = prepared_run(tmp_path / "often", data_file, tiny_model_dir)
    once = prepared_run(tmp_path / "once", data_file, tiny_model_dir)
    train_run(often, eval_steps=1.0, load_best_model_at_end=False, lora_dropout=0.1)
    train_run(once, eval_steps=6.0, load_best_model_at_end=False, lora_dropout=0.1)
    assert same(adapter_of(often), adapter_of(once))


@pytest.mark.slow
def test_same_seed_same_adapter_other_seed_another(tmp_path, data_file, tiny_model_dir):
    runs = [prepared_run(tmp_path / name, data_file, tiny_model_dir) for name in "abc"]
    for run, seed in zip(runs, (1, 1, 2), strict=True):
        train_run(run, seed=seed)
    assert same(adapter_of(runs[0]), adapter_of(runs[1]))
    assert not same(adapter_of(runs[0]), adapter_of(runs[2]))


def token_flags(tokens: int) -> dict[str, object]:
    return {name: value for name, value in FLAGS.items() if name != "batch_size"} | {"tokens_per_batch": tokens}


def train_by_tokens(run: RunDir, tokens: int = 300, resume: bool = False, reporter=None, **flags):
    config = resolve({**token_flags(tokens), **flags}, saved=run.saved_settings("prepare"))
    return train(run, config, reporter or Silent(), resume=resume)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_batches_of_tokens_train_for_as_many_steps_as_they_are(tmp_path, data_file, tiny_model_dir, packing):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    result = train_by_tokens(run, max_steps=None, num_epochs=2.0, packing=packing)
    settings = resolve({"packing": packing, "tokens_per_batch": 300}, saved=run.saved_settings("prepare"))
    lengths = training_sequences(training_rows(run.data), settings).lengths.tolist()
    batches = len(token_batches(lengths, 300))
    assert result.steps == 2 * -(-batches // 2)
    assert (result.plan["tokens_per_batch"], result.plan["batch_size"]) == (300, 300 // max(lengths))
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert max(row["tokens"] for row in rows if "tokens" in row) == 2 * sum(lengths)
    assert run.entry("train")["config"]["tokens_per_batch"] == 300
    assert "batch_size" not in run.entry("train")["config"]


@pytest.mark.slow
def test_batches_of_tokens_are_the_same_after_an_interruption(tmp_path, data_file, tiny_model_dir):
    whole, broken = (prepared_run(tmp_path / name, data_file, tiny_model_dir) for name in ("whole", "broken"))
    train_by_tokens(whole, eval_steps=2.0, lora_dropout=0.1, packing=False)
    with pytest.raises(Interrupted):
        train_by_tokens(broken, eval_steps=2.0, lora_dropout=0.1, packing=False, reporter=InterruptAt(2))
    for flags, message, hint in (
        ({"tokens_per_batch": 400}, "--tokens-per-batch was 300 before the interruption and is 400 now", "--tokens-per-batch"),
        ({"batch_size": 2}, "--tokens-per-batch was 300 before the interruption and is None now", "--batch-size"),
        ({"gradient_accumulation_steps": 4}, "--gradient-accumulation-steps was 2", "--gradient-accumulation-steps"),
    ):
        config = resolve(flags, saved=broken.saved_settings("prepare", "train"))
        with pytest.raises(ConfigError, match=message) as raised:
            train(broken, config, Silent(), resume=True)
        assert raised.value.hint == f"omit {hint}, or start over with --overwrite"
    config = resolve({}, saved=broken.saved_settings("prepare", "train"))
    assert train(broken, config, Silent(), resume=True).steps == 6
    assert same(adapter_of(whole), adapter_of(broken))


def test_resume_refuses_tokens_where_sequences_were_counted(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(Interrupted):
        train_run(run, eval_steps=2.0, reporter=InterruptAt(2))
    config = resolve({"tokens_per_batch": 300}, saved=run.saved_settings("prepare", "train"))
    with pytest.raises(ConfigError, match="--tokens-per-batch was None before the interruption and is 300 now"):
        train(run, config, Silent(), resume=True)


def test_settings_of_the_data_cannot_change_after_prepare(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    with pytest.raises(StageError, match="was prepared with --max-seq-length 96, not 128"):
        train_run(run, max_seq_length=128)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_accumulation_does_not_change_the_step(tmp_path, data_file, tiny_model_dir, batch_size, accumulation):
    """The loss is divided by the supervised tokens of the whole step, however it is cut into passes."""
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    flags = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "quantization": "none", "max_steps": 2}
    train_run(run, **flags)
    first = read_metrics(run.metrics)[1]
    reference = prepared_run(tmp_path / "reference", data_file, tiny_model_dir)
    train_run(reference, **(flags | {"batch_size": 4, "gradient_accumulation_steps": 1}))
    expected = read_metrics(reference.metrics)[1]
    assert first["loss"] == pytest.approx(expected["loss"], rel=2e-3)  # bf16 activations
    assert first["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-2)


def test_early_stopping_takes_the_best_evaluation(tmp_path, data_file, tiny_model_dir):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    flags = {"learning_rate": 0.3, "warmup_ratio": 0.0, "max_grad_norm": 0.0, "max_steps": 40}
    result = train_run(run, eval_steps=1.0, early_stopping_patience=1, **flags)
    _, *losses = [row["eval_loss"] for row in read_metrics(run.metrics) if "eval_loss" in row]
    assert result.steps < 40
    assert len(losses) == result.steps
    assert result.eval_loss == min(losses)
    assert result.best_step == losses.index(min(losses)) + 1


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["fp4", "int8", "none"])
def test_other_quantisations_train(tmp_path, data_file, tiny_model_dir, quantization):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    result = train_run(run, quantization=quantization, max_steps=3)
    assert result.plan["quantization"] == quantization
    assert result.eval_loss > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [{"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "gaussian"}, {"target_modules": "q_proj,v_proj"}]
)
def test_peft_options_reach_the_adapter(tmp_path, data_file, tiny_model_dir, flags):
    run = prepared_run(tmp_path / "run", data_file, tiny_model_dir)
    train_run(run, max_steps=2, **flags)
    written = json.loads((run.adapter / "adapter_config.json").read_text())
    for name, value in flags.items():
        expected = sorted(value.split(",")) if name == "target_modules" else value
        assert (sorted(written[name]) if name == "target_modules" else written[name]) == expected
