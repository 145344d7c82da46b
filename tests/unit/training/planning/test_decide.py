"""Which plan a training takes: the settings' own on a CPU, the wanted kind on a GPU, or a file's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from llmft_cli.base.errors import ConfigError, OutOfMemory
from llmft_cli.base.reporter import Silent
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models import model_source
from llmft_cli.settings.compute_types import ALL_ABILITIES, Abilities
from llmft_cli.settings.config import Config, resolve
from llmft_cli.training.batches.sequences import training_sequences
from llmft_cli.training.judgement import result
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning import decide as planning
from llmft_cli.training.planning.decide import (
    GIBIBYTE,
    ChosenPlan,
    can_be_predicted,
    choose_plan,
    decide,
    filled,
    longest_batches,
    plan_notice,
    worst_batches,
)
from llmft_cli.training.planning.memory import Breakdown
from llmft_cli.training.planning.options import Option
from llmft_cli.training.planning.plan_files import check_choices
from llmft_cli.training.planning.simulation import BatchShape, full_batch
from llmft_cli.training.step.tuned_model import make_trainable

from ...followed_once import of_the_model
from ...settled import settled
from ..made_sequences import rows_of, sequences_of
from ..tiny_training import Told, sequences

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PLAIN = {"batch_size": 2, "gradient_accumulation_steps": 3, "checkpointed_layers": 0, "optim": "adamw_8bit"}
NOTHING = Breakdown(0, 0, 0, 0, 0, 0, 0, 0, 0)


def decided(
    model_dir: Path, device: torch.device, reporter: Silent | None = None, recorded: dict[str, Any] | None = None, **flags: Any
) -> ChosenPlan:
    source = model_source.resolve(str(model_dir), Silent())
    config = resolve({"batch_size": 2, "gradient_accumulation_steps": 3, "lora_r": 4, "compute_dtype": "bf16", **flags})
    return decide(source, config, sequences(12, packing=True), device, reporter or Silent(), recorded)


MODELS: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def models_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build each model once, so that each of its steps is simulated once."""

    def made(base: Any, config: Config, name: str, able: Abilities | None) -> Any:
        key = base.config.to_json_string(), of_the_model(config), name, able
        if key not in MODELS:
            MODELS[key] = make_trainable(base, config, name, able)
        return MODELS[key]

    monkeypatch.setattr(planning, "make_trainable", made)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with plenty of memory, as far as planning is concerned."""
    monkeypatch.setattr(planning, "available_bytes", lambda device, max_vram: max_vram or 80 * GIBIBYTE)
    monkeypatch.setattr(planning, "abilities_of", lambda device: ALL_ABILITIES)


@pytest.mark.parametrize("plan", ["fast", "balanced", "frugal", "given"])
@pytest.mark.parametrize(("checkpointing", "layers"), [(None, 0), (False, 0), (True, 2)])
def test_on_a_cpu_the_settings_stay_as_they_are(
    tiny_model_dir: Path, plan: str, checkpointing: bool | None, layers: int
) -> None:
    chosen = decided(tiny_model_dir, CPU, plan=plan, gradient_checkpointing=checkpointing, optim="sgd")
    assert chosen == ChosenPlan(Plan(2, 3, layers, "sgd"))
    config = resolve({"batch_size": 2, "gradient_accumulation_steps": 3, "optim": "sgd"})
    assert chosen.applied_to(config) == config


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(("checkpointing", "layers"), [(None, 2), (False, 0), (True, 2)])
@pytest.mark.parametrize("flags", [{"plan": "given"}, {"quantization": "int8"}, {"use_dora": True}])
def test_what_is_not_predicted_is_checkpointed_on_a_gpu_unless_told_otherwise(
    tiny_model_dir: Path, checkpointing: bool | None, layers: int, flags: dict[str, Any]
) -> None:
    chosen = decided(tiny_model_dir, GPU, gradient_checkpointing=checkpointing, **flags)
    assert chosen == ChosenPlan(Plan(2, 3, layers, "adamw_torch_fused"))


@pytest.mark.usefixtures("card")
def test_a_model_that_cannot_be_followed_is_trained_as_the_settings_say(tmp_path: Path) -> None:
    """A mixture of experts selects by values, which `meta` tensors lack; planning it used to raise a traceback."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = AutoConfig.for_model("mixtral", vocab_size=128, num_key_value_heads=2, num_local_experts=2, **sizes)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
    told = Told()
    assert decided(tmp_path, GPU, told) == ChosenPlan(Plan(2, 3, 2, "adamw_torch_fused"))
    assert told.notes[0] == "planning GPU memory"
    assert told.notes[1].startswith(
        "memory cannot be planned, using the batch settings as given: steps of models of type mixtral cannot be"
    )


@pytest.mark.usefixtures("card")
def test_on_a_gpu_with_room_everything_goes_through_at_once(tiny_model_dir: Path) -> None:
    told = Told()
    chosen = decided(tiny_model_dir, GPU, told, optim="lion_32bit")
    assert chosen.predicted is not None
    assert chosen.predicted.plan == chosen.plan
    # A step this small takes as long as its launches do, however many sequences it has.
    assert chosen.plan == Plan(6, 1, 0, "lion_32bit", dequantized_weights=True)
    applied = chosen.applied_to(resolve({"batch_size": 2, "gradient_accumulation_steps": 3}))
    assert (applied.batch_size, applied.gradient_accumulation_steps, applied.optim) == (6, 1, "lion_32bit")
    assert told.notes == ["planning GPU memory", plan_notice(chosen.predicted, 80 * GIBIBYTE, settled({"batch_size": 6}))]
    assert told.notes[1].startswith(
        "plan: 6 sequences per pass, 1 pass per step, 0 layers checkpointed, lion_32bit, weights kept dequantised; needs about "
    )
    assert told.notes[1].endswith(" of 80.0 GiB")


@pytest.mark.slow
@pytest.mark.usefixtures("card")
def test_a_plan_in_fp16_is_that_in_bf16_and_one_in_fp32_holds_more(tiny_model_dir: Path) -> None:
    bf16, fp16, fp32 = (decided(tiny_model_dir, GPU, compute_dtype=name) for name in ("bf16", "fp16", "fp32"))
    assert bf16.predicted is not None
    assert fp16.predicted is not None
    assert fp32.predicted is not None
    assert fp16.plan == bf16.plan
    assert fp16.predicted.breakdown.total == pytest.approx(bf16.predicted.breakdown.total, abs=1024)
    of_bf16, of_fp32 = bf16.predicted.breakdown, fp32.predicted.breakdown
    assert of_fp32.dense_weights == pytest.approx(2 * of_bf16.dense_weights, rel=0.02)
    assert of_fp32.quantized_weights == of_bf16.quantized_weights


@pytest.mark.slow
def test_the_plan_of_an_older_gpu_is_that_of_what_it_can(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Triton weights are not kept dequantised, as layers are plain ones then."""
    monkeypatch.setattr(planning, "available_bytes", lambda device, max_vram: 16 * GIBIBYTE)
    for triton in (True, False):
        able = Abilities(bf16=False, flash_attention=False, triton=triton)
        monkeypatch.setattr(planning, "abilities_of", lambda device, able=able: able)
        chosen = decided(tiny_model_dir, GPU, compute_dtype="fp16")
        assert chosen.predicted is not None
        assert chosen.plan.dequantized_weights is triton


@pytest.mark.usefixtures("card")
def test_a_frugal_plan_holds_less_than_a_fast_one(tiny_model_dir: Path) -> None:
    fast, frugal = (decided(tiny_model_dir, GPU, plan=plan) for plan in ("fast", "frugal"))
    assert fast.predicted is not None
    assert frugal.predicted is not None
    assert frugal.predicted.required_bytes < fast.predicted.required_bytes
    assert frugal.plan.batch_size * frugal.plan.gradient_accumulation_steps == 6
    assert frugal.plan.optim == "paged_adamw_8bit"


@pytest.mark.usefixtures("card")
def test_a_budget_below_the_most_frugal_plan_is_told_before_anything_is_loaded(tiny_model_dir: Path) -> None:
    frugal = decided(tiny_model_dir, GPU, plan="frugal").predicted
    assert frugal is not None
    with pytest.raises(OutOfMemory, match=r"does not fit: the most frugal plan needs \d\.\d\d GiB, but only 0\.50 GiB"):
        decided(tiny_model_dir, GPU, max_vram="512MiB")


@pytest.mark.slow
@pytest.mark.usefixtures("card")
def test_a_resumed_training_keeps_its_optimizer(tiny_model_dir: Path) -> None:
    """The state in its checkpoint is of no use to another one, however much memory there is now."""
    eight_bit = {"optim": "paged_adamw_8bit"}
    assert decided(tiny_model_dir, GPU, recorded=eight_bit).plan.optim == "paged_adamw_8bit"
    plain = {"optim": "adamw_torch_fused"}
    assert decided(tiny_model_dir, GPU, recorded=plain, plan="frugal").plan.optim == "adamw_torch_fused"


def test_a_resumed_training_that_is_not_planned_keeps_its_optimizer(tiny_model_dir: Path, tmp_path: Path) -> None:
    """`--resume --plan given` after a plan with another optimizer than the settings' ended in a KeyError of torch's."""
    eight_bit = {"optim": "paged_adamw_8bit"}
    assert decided(tiny_model_dir, CPU, recorded=eight_bit, plan="given").plan.optim == "paged_adamw_8bit"
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    assert decided(tiny_model_dir, CPU, recorded=PLAIN, plan=str(path)).plan.optim == PLAIN["optim"]
    with pytest.raises(ConfigError, match=r"is adamw_8bit, but .* paged_adamw_8bit"):
        decided(tiny_model_dir, CPU, recorded=eight_bit, plan=str(path))


@pytest.mark.usefixtures("card")
def test_evaluation_takes_no_more_at_once_than_training(tiny_model_dir: Path) -> None:
    chosen = decided(tiny_model_dir, GPU, plan="frugal")
    assert chosen.plan.batch_size == 1
    # The longest row takes nearly all of the longest sequence.
    assert chosen.applied_to(resolve({"eval_batch_size": 8})).eval_batch_size == chosen.rows_of_longest == 2
    assert chosen.applied_to(resolve({"eval_batch_size": 8})).optim == chosen.plan.optim


@pytest.mark.usefixtures("card")
def test_a_training_that_is_resumed_may_keep_its_weights_as_it_likes(tiny_model_dir: Path) -> None:
    """Plans recorded before weights could be kept are accepted: the result is the same."""
    old = {"batch_size": 6, "gradient_accumulation_steps": 1, "checkpointed_layers": 0, "optim": "lion_32bit"}
    plans = [decided(tiny_model_dir, GPU, recorded=old | more).plan for more in ({}, {"dequantized_weights": False})]
    assert plans[0] == plans[1]
    assert plans[0].optim == "lion_32bit"


@pytest.mark.parametrize(("kept", "end"), [(False, "sgd; needs about"), (True, "sgd, weights kept dequantised; needs about")])
def test_kept_weights_are_told_and_recorded(kept: bool, end: str) -> None:
    plan = Plan(2, 8, 0, "sgd", dequantized_weights=kept)
    assert f"0 layers checkpointed, {end} 3.0 of 4.0 GiB" in plan_notice(
        Option(plan, NOTHING, 3 * GIBIBYTE, 1.0), 4 * GIBIBYTE, settled({"batch_size": 2})
    )
    assert result.describe(resolve({"compute_dtype": "bf16"}), CPU, ChosenPlan(plan))["dequantized_weights"] is kept


def option(required: int, optim: str = "adamw_torch_fused") -> Option:
    return Option(Plan(1, 16, 32, optim), NOTHING, required, 1000.0)


def test_where_no_plan_fits_the_least_that_is_needed_is_told() -> None:
    found = [option(9 * GIBIBYTE), option(int(5.25 * GIBIBYTE), "paged_adamw_8bit")]
    config = resolve({"model": "some/model", "plan": "fast"})
    with pytest.raises(OutOfMemory) as raised:
        choose_plan(found, 5 * GIBIBYTE, config)
    for fact in ("some/model", "frugal", "5.25 GiB", "5.00 GiB"):
        assert fact in raised.value.message
    for way in ("--max-seq-length", "--lora-r", "--model", "llmft gpu-check --model some/model", "--plan given"):
        assert way in raised.value.hint
    assert choose_plan(found, 6 * GIBIBYTE, config) == found[1]
    assert choose_plan(found, 9 * GIBIBYTE, config) == found[0]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_plan_is_read_from_a_file(tiny_model_dir: Path, tmp_path: Path, device: torch.device) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    told = Told()
    assert decided(tiny_model_dir, device, told, plan=str(path)) == ChosenPlan(Plan(**PLAIN))
    assert told.notes == [f"plan of {path}: 2 sequences per pass, 3 passes per step, 0 layers checkpointed, adamw_8bit"]


def test_a_plan_file_keeps_the_effective_batch(tiny_model_dir: Path, tmp_path: Path) -> None:
    """16 sequences per step were asked for, 1 was trained, and the ledger said 16."""
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAIN | {"batch_size": 1, "gradient_accumulation_steps": 1}))
    with pytest.raises(ConfigError) as raised:
        decided(tiny_model_dir, CPU, plan=str(path))
    assert raised.value.message == f"{path} has 1 sequence per step (1 x 1), but the settings have 6 (2 x 3)"
    assert raised.value.hint == (
        "change batch_size and gradient_accumulation_steps there, or add --batch-size 1 --gradient-accumulation-steps 1"
    )
    with pytest.raises(ConfigError):
        check_choices(resolve({"plan": str(path), "batch_size": 2}))
    check_choices(resolve({"plan": str(path)}))  # rows are counted, which are not known yet
    once = {"batch_size": 1, "gradient_accumulation_steps": 1}
    check_choices(resolve({"plan": str(path), **once}))
    assert decided(tiny_model_dir, CPU, plan=str(path), **once).plan.batch_size == 1
    path.write_text(yaml.safe_dump(PLAIN | {"batch_size": 1, "gradient_accumulation_steps": 6}))
    chosen = decided(tiny_model_dir, CPU, plan=str(path))
    applied = chosen.applied_to(resolve({"batch_size": 2, "gradient_accumulation_steps": 3}))
    assert (applied.batch_size, applied.gradient_accumulation_steps) == (1, 6)


@pytest.mark.parametrize(
    ("name", "complaint", "hint"),
    [
        ("adamw", "--optim: 'adamw' is not the name of an optimizer in transformers", "did you mean adamw_torch?"),
        ("qqqq", "--optim: 'qqqq' is not the name of an optimizer in transformers", "for example adamw_torch_fused; all: "),
        ("adamw_anyprecision", "--optim: adamw_anyprecision cannot be used here: Please install", "use another one, such as"),
    ],
)
def test_an_optimizer_that_cannot_be_had_is_told_before_anything_is_loaded(name: str, complaint: str, hint: str) -> None:
    """transformers finds out when it creates the optimizer, after the model was loaded."""
    with pytest.raises(ConfigError) as raised:
        check_choices(resolve({"optim": name}))
    assert raised.value.message.startswith(complaint)
    assert raised.value.hint.startswith(hint)
    check_choices(resolve({"optim": "paged_adamw_8bit"}))


def test_a_kind_that_does_not_exist_is_told_what_there_is(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the plan fastest") as raised:
        decided(tiny_model_dir, CPU, plan="fastest")
    assert raised.value.hint == "--plan takes fast, balanced, frugal or a file"


def row(tokens: int, supervised: int, rows: list[int]) -> dict[str, Any]:
    assert sum(rows) == tokens
    labels = [IGNORED] * (tokens - supervised) + [7] * supervised
    return {"input_ids": [7] * tokens, "labels": labels, "row_lengths": rows}


def test_the_worst_batch_is_as_long_and_as_supervised_as_they_come() -> None:
    data = sequences_of([row(20, 3, [10, 10]), row(12, 9, [12]), row(16, 7, [16]), row(8, 1, [8])])
    batch_of = worst_batches(data)
    assert [batch_of(size).length for size in (1, 2, 4)] == [20, 20, 20]
    assert [batch_of(size).supervised for size in (1, 2, 3, 4)] == [9, 16, 19, 20]
    assert [batch_of(size).tokens for size in (1, 4)] == [20, 80]
    assert batch_of(1).longest_row == 16


def test_the_worst_batch_of_so_many_tokens_is_the_largest_there_is() -> None:
    """Here three of up to 64 tokens, padded to them, rather than the longest one."""
    data = sequences_of([row(150, 99, [150]), row(63, 9, [63]), row(58, 30, [40, 18]), row(57, 7, [57])])
    assert worst_batches(data, 200)(1) == BatchShape(3, 64, 46, 3, 63)
    assert worst_batches(data, 150)(1) == BatchShape(1, 150, 99, 1, 150)


def test_rows_of_the_worst_batch_cost_attention_what_the_rows_there_are_cost() -> None:
    """The squares of all rows' lengths, spread evenly over the batches."""
    data = sequences_of([row(40, 30, [20, 10, 10]), row(40, 30, [20, 20])] * 4)
    batch = worst_batches(data)(8)
    squares = 4 * (20**2 + 10**2 + 10**2) + 4 * 2 * 20**2
    assert batch.longest_row == 20
    assert batch.rows * batch.longest_row**2 == pytest.approx(squares, abs=20**2 / 2)
    # Rows much shorter than the longest one: still a row in each sequence.
    uneven = sequences_of([row(100, 50, [100]), *[row(4, 2, [4])] * 19])
    assert worst_batches(uneven)(2).rows == 2


def test_without_data_batches_are_as_full_as_the_settings_allow() -> None:
    batch_of = longest_batches(resolve({"max_seq_length": 512}))
    assert [batch_of(size) for size in (1, 4)] == [full_batch(1, 512), full_batch(4, 512)]
    by_tokens = filled(resolve({"max_seq_length": 512, "tokens_per_batch": 1600}))
    assert longest_batches(by_tokens)(by_tokens.batch_size) == full_batch(3, 533)


# -- batches of tokens: `sequences(12, packing=True)` have at most 65

TOKENS = {"tokens_per_batch": 170, "gradient_accumulation_steps": 3, "lora_r": 4}


def decided_by_tokens(model_dir: Path, device: torch.device, reporter: Told | None = None, **flags: Any) -> ChosenPlan:
    source = model_source.resolve(str(model_dir), Silent())
    return decide(
        source, resolve(TOKENS | {"compute_dtype": "bf16"} | flags), sequences(12, packing=True), device, reporter or Silent()
    )


@pytest.mark.parametrize("plan", ["fast", "given"])
def test_a_batch_of_tokens_is_planned_as_the_longest_sequences_that_fill_it(tiny_model_dir: Path, plan: str) -> None:
    chosen = decided_by_tokens(tiny_model_dir, CPU, plan=plan)
    assert chosen == ChosenPlan(Plan(2, 3, 0, "adamw_torch_fused"))
    applied = chosen.applied_to(resolve(TOKENS))
    assert (applied.batch_size, applied.gradient_accumulation_steps, applied.tokens_per_batch) == (2, 3, 170)


@pytest.mark.usefixtures("card")
def test_on_a_gpu_a_batch_of_tokens_stays_the_users(tiny_model_dir: Path) -> None:
    """However much memory is free; everything else is planned as usual."""
    told = Told()
    chosen = decided_by_tokens(tiny_model_dir, GPU, told)
    assert chosen.plan == Plan(2, 3, 0, "adamw_torch_fused", dequantized_weights=True)
    assert chosen.predicted is not None
    assert chosen.predicted.plan == chosen.plan
    assert told.notes[1].startswith("plan: 170 tokens per pass, 3 passes per step, 0 layers checkpointed, ")
    frugal = decided_by_tokens(tiny_model_dir, GPU, plan="frugal").plan
    assert frugal.optim == "paged_adamw_8bit"
    assert (frugal.batch_size, frugal.gradient_accumulation_steps) == (2, 3)


def test_a_longer_sequence_than_a_batch_of_tokens_is_refused(tiny_model_dir: Path) -> None:
    longest = int(sequences(12, packing=True).lengths.max())
    with pytest.raises(ConfigError) as raised:
        decided_by_tokens(tiny_model_dir, CPU, tokens_per_batch=longest - 1)
    assert raised.value.message == f"--tokens-per-batch {longest - 1} is less than the longest sequence ({longest} tokens)"
    assert f"use --tokens-per-batch {longest} or more" in raised.value.hint
    assert decided_by_tokens(tiny_model_dir, CPU, tokens_per_batch=longest).plan.batch_size == 1


def test_a_plan_file_has_the_batch_that_the_tokens_amount_to(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    passes = {"gradient_accumulation_steps": TOKENS["gradient_accumulation_steps"]}
    path.write_text(yaml.safe_dump(PLAIN | passes | {"batch_size": 2}))
    assert decided_by_tokens(tiny_model_dir, CPU, plan=str(path)).plan.batch_size == 2
    path.write_text(yaml.safe_dump(PLAIN | {"batch_size": 4}))
    with pytest.raises(ConfigError, match="is 4, but --tokens-per-batch 170 holds 2 of the longest sequences"):
        decided_by_tokens(tiny_model_dir, CPU, plan=str(path))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, True),
        ({"quantization": "fp4", "lora_dropout": 0.1, "use_rslora": True}, True),
        ({"quantization": "none"}, True),
        ({"quantization": "int8"}, False),
        ({"use_dora": True}, False),
        ({"trust_remote_code": True}, False),
    ],
)
def test_what_can_be_predicted(flags: dict[str, Any], expected: bool) -> None:
    assert can_be_predicted(resolve(flags)) is expected


# -- steps that count rows

ROWS = rows_of(*((10 + number % 50, 4) for number in range(64)))


def decided_for_rows(model_dir: Path, device: torch.device, reporter: Silent | None = None, **flags: Any) -> tuple[Any, Config]:
    config = settled({"rows_per_step": 16, "lora_r": 4, "compute_dtype": "bf16", **flags})
    source = model_source.resolve(str(model_dir), Silent())
    chosen = decide(source, config, training_sequences(ROWS, config), device, reporter or Silent())
    return chosen, chosen.applied_to(config)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("plan", "rows", "passes"), [("fast", 16, 1), ("frugal", 1, 16)])
def test_a_plan_says_in_how_many_passes_the_rows_of_a_step_go(
    tiny_model_dir: Path, plan: str, rows: int, passes: int, packing: bool
) -> None:
    told = Told()
    chosen, applied = decided_for_rows(tiny_model_dir, GPU, told, plan=plan, packing=packing)
    assert (chosen.plan.batch_size, chosen.plan.gradient_accumulation_steps) == (rows, passes)
    assert (applied.batch_size, applied.gradient_accumulation_steps, applied.rows_per_step) == (rows, passes, 16)
    assert told.notes[-1].startswith(f"plan: {rows} row{'s' if rows > 1 else ''} per pass, {passes} pass")


@pytest.mark.parametrize(("lengths", "rows"), [(1, 16), (6, 4), (60, 1)])
def test_on_a_cpu_a_pass_has_as_many_rows_as_2048_tokens_hold(tiny_model_dir: Path, lengths: int, rows: int) -> None:
    config = settled({"rows_per_step": 16, "compute_dtype": "fp32"})
    sequences = training_sequences(rows_of(*((lengths * 80, 4) for _ in range(32))), config)
    source = model_source.resolve(str(tiny_model_dir), Silent())
    assert decide(source, config, sequences, CPU, Silent()).plan.batch_size == rows


def test_a_plan_file_keeps_the_rows_of_a_step(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAIN))
    with pytest.raises(ConfigError) as raised:
        decided_for_rows(tiny_model_dir, CPU, plan=str(path))
    assert raised.value.message == f"{path} has 6 rows per step (2 x 3), but the settings have 16"
    assert raised.value.hint == "change batch_size and gradient_accumulation_steps there, or add --rows-per-step 6"
    path.write_text(yaml.safe_dump(PLAIN | {"gradient_accumulation_steps": 8}))
    assert decided_for_rows(tiny_model_dir, CPU, plan=str(path))[0].plan.batch_size == 2
