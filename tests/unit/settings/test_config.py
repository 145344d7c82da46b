"""The config: precedence, error messages, and that saved settings read back unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmft_cli.base.errors import ConfigError
from llmft_cli.settings import config
from llmft_cli.settings.config import ALIASES, FIELDS, Config, Field, resolve

WriteYaml = Callable[[str], Path]


@pytest.fixture
def yaml_file(tmp_path: Path) -> WriteYaml:
    def write(text: str) -> Path:
        file = tmp_path / "settings.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def complaint_of(action: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        action()
    return caught.value.message, caught.value.hint


def test_the_defaults_are_the_designs() -> None:
    defaults = Config()
    assert defaults.model == "meta-llama/Llama-2-7b-chat-hf"
    assert (defaults.max_seq_length, defaults.packing, defaults.lr_scheduler) == (2048, True, "cosine")
    assert [name for name, item in FIELDS.items() if item.setting.auto] == [
        "learning_rate",
        "num_epochs",
        "rows_per_step",
        "warmup_ratio",
        "eval_steps",
        "early_stopping_patience",
    ]
    assert (defaults.lora_r, defaults.lora_alpha, defaults.lora_dropout) == (16, 32, 0.0)
    assert (defaults.target_modules, defaults.val_size, defaults.max_rejected) == ("all-linear", 0.05, 0.05)


def test_every_default_passes_its_own_check() -> None:
    for name, item in FIELDS.items():
        assert config.validated(name, item.default, name) == item.default


def test_flag_wins_over_file_over_saved_over_default(yaml_file: WriteYaml) -> None:
    file = yaml_file("lora_r: 8\nbatch_size: 2\n")
    saved = {"lora_r": 4, "batch_size": 1, "seed": 7, "gone_since": 1}
    resolved = resolve({"lora_r": "64", "batch_size": None}, file, saved)
    assert (resolved.lora_r, resolved.batch_size, resolved.seed, resolved.num_epochs) == (64, 2, 7, None)


def test_a_file_can_take_back_what_is_saved(yaml_file: WriteYaml) -> None:
    assert resolve({}, yaml_file("max_steps:\n"), {"max_steps": 10}).max_steps is None


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_transformers_names_are_taken_in_a_file(alias: str, name: str, yaml_file: WriteYaml) -> None:
    value = {"model": "m", "lr_scheduler": "linear"}.get(name, 7)
    assert getattr(resolve({}, yaml_file(f"{alias}: {value}\n")), name) == value


def test_the_aliases_the_design_names_are_there() -> None:
    assert {"num_train_epochs", "per_device_train_batch_size", "lr_scheduler_type"} <= set(ALIASES)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning-rate: 0.001", "learning_rate", 0.001),
        ("learning_rate: 2e-4", "learning_rate", 0.0002),
        ("learning_rate: '3e-5'", "learning_rate", 0.00003),
        ("val_size: 10%", "val_size", 0.1),
        ("val_size: 12", "val_size", 12.0),
        ("max_rejected: 100%", "max_rejected", 1.0),
        ("batch_size: 8.0", "batch_size", 8),
        ("max_steps: '1e3'", "max_steps", 1000),
        ("packing: no", "packing", False),
        ("gradient_checkpointing: true", "gradient_checkpointing", True),
        ("target_modules: [q_proj, v_proj]", "target_modules", "q_proj,v_proj"),
        ("revision:", "revision", None),
        # Text is what is written, whatever it is in YAML.
        ("wandb_project: 2024", "wandb_project", "2024"),
        ("wandb_project: 2024-01-01", "wandb_project", "2024-01-01"),
        ("wandb_project: 2024-99-99", "wandb_project", "2024-99-99"),
        ("revision: 1234567", "revision", "1234567"),
        ("revision: 0123", "revision", "0123"),
        ("revision: 1e5", "revision", "1e5"),
        ("revision: 12_345", "revision", "12_345"),
        ("revision: 1:30", "revision", "1:30"),
        ("revision: on", "revision", "on"),
        ("model: 7", "model", "7"),
        ("model: !!str 7", "model", "7"),
        ("max_rows: 1000", "max_rows", "1000"),
        ("max_rows: [1000, 500]", "max_rows", "1000,500"),
        ("weights: [2, 0.5]", "weights", "2,0.5"),
        ("weights: 2", "weights", "2"),
        ("columns: {prompt: q, completion: a.text}", "columns", "prompt=q,completion=a.text"),
        ("columns: [prompt=q, completion=a]", "columns", "prompt=q,completion=a"),
        ("columns: prompt=q", "columns", "prompt=q"),
        ("target_modules: q_proj, v_proj", "target_modules", "q_proj,v_proj"),
        ("target_modules: [1, 2.0]", "target_modules", "1,2.0"),
        ("report_to: [wandb, tensorboard, wandb]", "report_to", "wandb,tensorboard"),
        ("report_to: []", "report_to", "none"),
        # Switches are YAML's, quoted or not.
        ("packing: OFF", "packing", False),
        ("packing: 'yes'", "packing", True),
        # A leading zero makes no number octal, and a colon none of base 60.
        ("seed: 010", "seed", 10),
        ("seed: 1_000", "seed", 1000),
        # Shares.
        ("val_size: 5%", "val_size", 0.05),
        ("warmup_ratio: 3%", "warmup_ratio", 0.03),
        ("eval_steps: 20%", "eval_steps", 0.2),
        ("lora_dropout: 10%", "lora_dropout", 0.1),
        # Sizes.
        ("max_vram: 12GiB", "max_vram", 12 * 2**30),
        ("max_vram: 12884901888B", "max_vram", 12 * 2**30),
        # What is optional may be taken back.
        ("max_steps: ~", "max_steps", None),
        ("max_steps: none", "max_steps", None),
        ("gradient_checkpointing: None", "gradient_checkpointing", None),
    ],
)
def test_what_a_file_may_say(text: str, name: str, value: Any, yaml_file: WriteYaml) -> None:
    found = getattr(resolve({}, yaml_file(text)), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size: true", "batch_size in {file}: 'true' is not a whole number"),
        ("batch_size: 2.5", "batch_size in {file}: '2.5' is not a whole number"),
        ("batch_size: many", "batch_size in {file}: 'many' is not a whole number"),
        ("batch_size: 0", "batch_size in {file}: 0 must be at least 1"),
        ("lora_r:", "lora_r in {file} has no value"),
        ("seed: 4294967296", "seed in {file}: 4294967296 must be at most 4294967295"),
        (f"seed: 1{'0' * 400}", f"seed in {{file}}: '1{'0' * 58}... is not a whole number"),
        ("learning_rate: .nan", "learning_rate in {file}: '.nan' is not a number"),
        ("learning_rate: .inf", "learning_rate in {file}: '.inf' is not a number"),
        ("learning_rate: 1", "learning_rate in {file}: 1.0 must be below 1"),
        ("learning_rate: 0", "learning_rate in {file}: 0.0 must be above 0"),
        ("warmup_ratio: 1.5", "warmup_ratio in {file}: 1.5 must be at most 1"),
        ("packing: 1", "packing in {file}: '1' is not true or false"),
        ("packing: 'yes please'", "packing in {file}: 'yes please' is not true or false"),
        ("model: ''", "model in {file}: '' is empty"),
        ('model: "a\\0b"', "model in {file}: 'a\\x00b' is not text"),
        ('model: "a\\ud800b"', "model in {file}: 'a\\ud800b' has a lone surrogate (\\ud800 in column 2)"),
        ("model: [a]", "model in {file}: ['a'] is not text"),
        ("model: {a: b}", "model in {file}: {{'a': 'b'}} is not text"),
        (
            "model: !!python/object:os.system ls",
            "'model' in {file} has the tag !!python/object:os.system, which is not supported",
        ),
        ("model: !!binary aGk=", "'model' in {file} has the tag !!binary, which is not supported"),
        (
            "report_to: no",
            "report_to in {file}: 'no' must be one of none, wandb, tensorboard, mlflow, trackio, or several of them",
        ),
        ("report_to: [wandb, none]", "report_to in {file}: 'wandb,none' has none besides other values"),
        ("target_modules: []", "target_modules in {file}: [] is empty"),
        ("target_modules: 'q_proj,,v_proj'", "target_modules in {file}: 'q_proj,,v_proj' has an empty item"),
        ("target_modules: ['a,b']", "target_modules in {file}: ['a,b'] has a comma within an item"),
        (
            "target_modules: [a, [b]]",
            "'target_modules' in {file} is nested: a list or mapping can contain only text and numbers",
        ),
        ("target_modules: [a, null]", "target_modules in {file}: ['a', None] is not text"),
        ("target_modules: {a: b}", "target_modules in {file}: {{'a': 'b'}} is not text"),
        ("columns: {prompt: a, prompt: b}", "'columns' in {file}: 'prompt' is set twice"),
        ("weights: [2, many]", "weights in {file}: ['2', 'many'] is not a list of numbers above 0, at most 10000 (2,0.5)"),
        ("weights: [2, -1]", "weights in {file}: ['2', '-1'] is not a list of numbers above 0, at most 10000 (2,0.5)"),
        ("max_rows: 1.5", "max_rows in {file}: '1.5' is not a list of whole numbers above 0 (1000,500)"),
        ("num_epochs: 1e10", "num_epochs in {file}: 10000000000.0 must be at most 2147483647"),
        ("eval_steps: 100%", "eval_steps in {file}: '100%' is not a share below 1 (0.2 or 20%) or a number of steps"),
        (
            "device: tpu",
            "device in {file}: 'tpu' must be one of auto, cuda, cpu",
        ),
        ("val_size: 100%", "val_size in {file}: '100%' is not a share below 1 (0.05 or 5%) or a number of rows"),
        ("val_size: 1.5", "val_size in {file}: '1.5' is not a share below 1 (0.05 or 5%) or a number of rows"),
        ("max_rejected: '%'", "max_rejected in {file}: '%' is not a share (0.05 or 5%)"),
        ("learning_rate: [1]", "learning_rate in {file}: ['1'] is not a number"),
    ],
)
def test_what_a_file_may_not_say_names_setting_and_file(text: str, message: str, yaml_file: WriteYaml) -> None:
    file = yaml_file(text)
    assert complaint_of(lambda: resolve({}, file)) == (message.format(file=file), "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "3", "--learning-rate: 3.0 must be below 1"),
        ("batch_size", "x", "--batch-size: 'x' is not a whole number"),
        ("lora_dropout", "-0.1", "--lora-dropout: -0.1 must be at least 0"),
        ("max_rejected", "150%", "--max-rejected: 1.5 must be at most 1"),
        ("report_to", "wandb,comet", "--report-to: 'wandb,comet' must be one of none, wandb, tensorboard, mlflow, trackio, or "
         "several of them"),
        ("temperature", "1e-300", "--temperature: '1e-300' is not 0 or a number of at least 0.000001"),
        ("wandb_project", "caf\udce9", "--wandb-project: 'caf\\udce9' is not UTF-8 (byte 0xe9 in column 4)"),
        ("target_modules", " ", "--target-modules: ' ' is empty"),
        ("rows_per_step", "none", "--rows-per-step: 'none' is not a whole number"),
        ("lr_scheduler", "cosin", "--lr-scheduler: 'cosin' must be one of cosine, linear, constant, constant_with_warmup"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_named_as_the_user_wrote_it(name: str, value: str, message: str) -> None:
    assert complaint_of(lambda: resolve({name: value})) == (message, "")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("<<", "`llmft train --help-all` lists the settings"),
        ("learning_rat", "did you mean learning_rate?"),
        ("lora-rank", "did you mean lora_r?"),
        ("num_train_epoch", "did you mean num_train_epochs?"),
        ("qqqqq", "`llmft train --help-all` lists the settings"),
        ("3", "`llmft train --help-all` lists the settings"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, hint: str, yaml_file: WriteYaml) -> None:
    file = yaml_file(f"{key}: 1\n")
    assert complaint_of(lambda: resolve({}, file)) == (f"unknown setting {key} in {file}", hint)


def test_a_setting_given_under_two_names_is_refused(yaml_file: WriteYaml) -> None:
    file = yaml_file("num_epochs: 1\nnum_train_epochs: 2\n")
    message = f"num_epochs is set twice in {file}, the second time as num_train_epochs"
    assert complaint_of(lambda: resolve({}, file)) == (message, "remove one of them")


@pytest.mark.parametrize(("text", "second"), [("seed: 1\nseed: 2\n", ""), ("lora_r: 1\nlora-r: 1\n", "lora-r")])
def test_a_setting_given_twice_is_refused(text: str, second: str, yaml_file: WriteYaml) -> None:
    """YAML's own reader takes the last one and says nothing."""
    file = yaml_file(text)
    message, hint = complaint_of(lambda: resolve({}, file))
    assert message == f"{text[: text.index(':')]} is set twice in {file}" + (f", the second time as {second}" if second else "")
    assert hint == "remove one of them"


def test_an_empty_file_sets_nothing(yaml_file: WriteYaml) -> None:
    assert resolve({}, yaml_file("# nothing yet\n")) == Config()


@pytest.mark.parametrize(("text", "kind"), [("- lora_r\n", "a list"), ("lora_r\n", "text"), ("7\n", "text")])
def test_a_file_that_is_no_mapping(text: str, kind: str, yaml_file: WriteYaml) -> None:
    file = yaml_file(text)
    message = f"{file} must contain `key: value` lines, not {kind}"
    assert complaint_of(lambda: resolve({}, file)) == (message, "")


@pytest.mark.parametrize("text", ["lora_r: [1\n", "a: b: c\n", "model: *a\n", "\tlora_r: 1\n", "a: 1\n---\nb: 2\n"])
def test_a_file_that_is_no_yaml(text: str, yaml_file: WriteYaml) -> None:
    file = yaml_file(text)
    message, _ = complaint_of(lambda: resolve({}, file))
    assert message.startswith(f"{file} is not valid YAML: ")
    assert "\n" not in message


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"model: \xff\xfe\n")
    message, _ = complaint_of(lambda: resolve({}, file))
    assert message.startswith(f"{file} is not valid YAML: 'utf-8' codec can't decode byte 0xff")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    message = f"cannot read the config file {file}: No such file or directory"
    assert complaint_of(lambda: resolve({}, file)) == (message, "")
    message = f"cannot read the config file {tmp_path}: Is a directory"
    assert complaint_of(lambda: resolve({}, tmp_path)) == (message, "")


@pytest.mark.parametrize(
    ("text", "name"),
    [("AUTO", "auto"), ("GBK", "gbk"), ("Shift-JIS", "shift_jis"), ("latin1", "iso8859-1"), ("UTF8", "utf-8"), ("cp1252",) * 2],
)
def test_an_encoding_is_any_name_that_python_knows_it_by(text: str, name: str) -> None:
    assert resolve({"encoding": text}).encoding == name


@pytest.mark.parametrize("text", ["klingon", "hex", "rot13", "idna", "unicode_escape"])
def test_no_other_codec_is_an_encoding(text: str) -> None:
    message = f"--encoding: {text!r} is not an encoding that Python knows, such as gb18030, cp932 or cp1252"
    assert complaint_of(lambda: resolve({"encoding": text})) == (message, "")


def test_of_command_gives_the_settings_of_a_command() -> None:
    assert config.of_command(Config(), "merge") == {"device": "auto", "compute_dtype": "auto"}
    assert set(config.of_command(Config(), "prepare")) == {
        "model", "revision", "trust_remote_code", "chat_template", "format", "columns", "dataset_split", "max_seq_length",
        "on_overlength", "train_on", "val_size", "max_rejected", "weights", "max_rows", "near_duplicates", "strict",
        "encoding", "seed", "rows_per_answer", "on_unrendered", "merge_turns",
    }  # fmt: skip


def values_of(item: Field) -> st.SearchStrategy[Any]:
    """All valid values of a field."""
    rule = item.setting
    if rule.choices:
        values: st.SearchStrategy[Any] = st.sampled_from(rule.choices)
    elif item.type is bool:
        values = st.booleans()
    elif item.type is int:
        values = st.integers(int(rule.minimum or 0), int(rule.maximum))
    elif item.type is float:
        largest = rule.maximum if rule.below is None else rule.below
        smallest = rule.minimum if rule.minimum is not None else rule.above
        values = st.floats(smallest, largest, exclude_min=rule.above is not None, exclude_max=rule.below is not None)
    elif rule.choices:
        values = st.sampled_from(rule.choices)
    else:
        letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0," if rule.is_list else "\0")
        values = st.text(letters).filter(lambda text: text.strip() and text.strip().lower() != "none")
    if rule.is_list and not rule.choices:  # items have no spaces around them
        items = st.integers(1, 10**4).map(str) if rule.parse else values.map(str.strip)
        values = st.lists(items, min_size=1).map(",".join)
    if item.name == "encoding":
        values = st.sampled_from(["auto", "gb18030", "iso8859-1", "utf-8"])
    if item.name == "val_size":
        values = st.floats(0, 1, exclude_max=True) | st.integers(1, 10**6).map(float)
    if item.name == "temperature":
        values = st.just(0.0) | st.floats(1e-6, 1e6)
    return st.none() | values if item.optional else values


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({name: values_of(item) for name, item in FIELDS.items()}))
@example(values={**dataclasses.asdict(Config()), "wandb_project": "a\x85b", "model": "\u6a21\u578b", "revision": "0123"})
def test_what_is_saved_reads_back_as_it_was(values: dict[str, Any], tmp_path: Path) -> None:
    defaults = dataclasses.asdict(Config())
    for pair in config.ALTERNATIVES:
        if values.get(pair.replacement) is not None:
            values = {other: value for other, value in values.items() if other != pair.name}
    file = tmp_path / "config.yaml"
    file.write_text(config.dump(values), encoding="utf-8")
    assert dataclasses.asdict(resolve({}, file)) == defaults | values


# -- a batch of sequences, or of tokens


def test_a_batch_has_a_number_of_sequences_or_of_tokens() -> None:
    given = "--batch-size (2) and --tokens-per-batch (8192) "
    message, hint = complaint_of(lambda: resolve({"batch_size": "2", "tokens_per_batch": "8192"}))
    assert message.startswith(given)
    assert hint == "remove --batch-size to fill batches by tokens, or --tokens-per-batch to count sequences"


def test_a_file_says_it_one_way_too(yaml_file: WriteYaml) -> None:
    file = yaml_file("per_device_train_batch_size: 2\ntokens-per-batch: 8192\n")
    message, _ = complaint_of(lambda: resolve({}, file))
    assert message.startswith(f"batch_size in {file} (2) and tokens_per_batch in {file} (8192) ")


def test_a_flag_replaces_either_in_the_file_and_the_file_either_of_the_run(yaml_file: WriteYaml) -> None:
    by_tokens, by_rows = {"tokens_per_batch": 8192}, {"batch_size": 2, "tokens_per_batch": None}
    file = yaml_file("batch_size: 3\n")

    def sizes(*layers: Any) -> tuple[int | None, int | None]:
        resolved = resolve(*layers)
        return resolved.batch_size, resolved.tokens_per_batch

    assert sizes({"tokens_per_batch": "64"}, file, by_rows) == (None, 64)
    assert sizes({}, file, by_tokens) == (3, None)
    assert sizes({"lora_r": 8}, None, by_tokens) == (None, 8192)
    assert sizes({"batch_size": "5"}, None, by_tokens) == (5, None)
    assert sizes({"lora_r": 8}, yaml_file("tokens_per_batch: null\n"), by_rows) == (2, None)


@pytest.mark.parametrize("name", [name for name, item in FIELDS.items() if item.setting.auto])
def test_auto_leaves_it_to_the_recipe(name: str, yaml_file: WriteYaml) -> None:
    assert getattr(resolve({name: "Auto"}, yaml_file(f"{name}: 0.5\n") if "ratio" in name else None), name) is None
    assert f"{name}: auto" in config.dump(dataclasses.asdict(Config()))
    assert getattr(resolve({}, yaml_file(f"{name}: auto\n")), name) is None


def test_rows_of_a_step_are_given_up_for_sequences() -> None:
    """`--batch-size` after a training that counted rows; and rows after one that counted sequences."""
    rows, sequences = {"rows_per_step": 32}, {"batch_size": 2, "gradient_accumulation_steps": 3}

    def counts(*layers: Any) -> tuple[int | None, ...]:
        resolved = resolve(*layers)
        return resolved.rows_per_step, resolved.batch_size, resolved.gradient_accumulation_steps

    assert counts({"batch_size": "4"}, None, rows) == (None, 4, None)
    assert counts({"gradient_accumulation_steps": "4"}, None, rows) == (None, None, 4)
    assert counts({"rows_per_step": "8"}, None, sequences) == (8, None, None)
    message, hint = complaint_of(lambda: resolve({"rows_per_step": "8", "batch_size": "2"}))
    assert message.startswith("--rows-per-step (8) and --batch-size (2) ")
    assert hint == "remove --rows-per-step to count sequences, or --batch-size to count rows"


@pytest.mark.parametrize("flags", [{"tokens_per_batch": 64}, {"batch_size": 2}])
def test_what_a_run_records_says_it_one_way(flags: dict[str, int]) -> None:
    """The saved file can be passed to another run."""
    recorded = config.of_command(resolve(flags), "train")
    assert {name: recorded[name] for name in ("batch_size", "tokens_per_batch") if recorded.get(name) is not None} == flags
    assert resolve({}, None, recorded) == resolve(flags)


@pytest.mark.parametrize("item", FIELDS.values(), ids=FIELDS)
def test_every_setting_is_described(item: Field) -> None:
    assert item.setting.help.endswith(".")
    assert item.setting.commands
    assert set(item.setting.commands) <= {"gpu-check", "prepare", "train", "merge", "eval", "chat"}


# -- steps, or epochs


def test_steps_and_epochs_exclude_each_other(yaml_file: WriteYaml) -> None:
    """`--max-steps` replaced `--num-epochs` without a word, even where the epochs were the later word."""
    message, hint = complaint_of(lambda: resolve({"max_steps": "10", "num_epochs": "2"}))
    assert message == "--num-epochs (2.0) and --max-steps (10) cannot be combined"
    assert hint == "remove --num-epochs to count steps, or --max-steps to count passes over the rows"
    file = yaml_file("max_steps: 10\n")
    by_flag = resolve({"num_epochs": "2"}, file)
    assert (by_flag.num_epochs, by_flag.max_steps) == (2.0, None)
    assert resolve({"max_steps": "7"}, yaml_file("num_epochs: 2\n")).max_steps == 7
    assert resolve({"num_epochs": "2"}, None, {"max_steps": 10}).max_steps is None


@pytest.mark.parametrize(("flags", "left_out"), [({"max_steps": "5"}, "num_epochs"), ({}, None)])
def test_what_a_run_records_of_its_length_can_be_given_again(flags: dict[str, str], left_out: str | None) -> None:
    recorded = config.of_command(resolve(flags), "train")
    assert ("num_epochs" in recorded) is (left_out is None)
    assert resolve({}, None, recorded) == resolve(flags)


# -- sizes


@pytest.mark.parametrize(
    ("value", "guess"), [("12", "12GiB"), ("0.5", "0.5GiB"), ("1048575", "1048575GiB"), ("12884901888", "12884901888B")]
)
def test_a_size_without_a_unit_is_refused(value: str, guess: str, yaml_file: WriteYaml) -> None:
    """`--max-vram 12` was 12 bytes."""
    expected = (f"--max-vram: {value!r} has no unit", f"did you mean {guess}?")
    assert complaint_of(lambda: resolve({"max_vram": value})) == expected
    file = yaml_file(f"max_vram: {value}\n")
    assert complaint_of(lambda: resolve({}, file)) == (f"max_vram in {file}: {value!r} has no unit", f"did you mean {guess}?")


def test_a_saved_size_is_in_bytes() -> None:
    assert config.dump({"max_vram": 12 * 2**30, "lora_r": 8}) == "max_vram: 12884901888B\nlora_r: 8\n"
    assert config.dump({"max_vram": None}) == "max_vram: null\n"


# -- taking back


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", "3"), ("max_vram", "12GiB"), ("columns", "prompt=q"), ("max_steps", "9")]
)
def test_a_flag_can_take_back_what_a_file_sets(name: str, value: str, yaml_file: WriteYaml) -> None:
    file = yaml_file(f"{name}: {value}\n")
    assert getattr(resolve({name: "none"}, file), name) is None
    assert getattr(resolve({name: "None"}, None, {name: value}), name) is None


# -- files


@pytest.mark.parametrize("content", [b"\xef\xbb\xbflora_r: 8\n", b"lora_r: 8\r\nseed: 1\r\n", b"--- \nlora_r: 8\n...\n"])
def test_files_of_other_systems_are_read(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    assert resolve({}, file).lora_r == 8


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: " + b"[" * 100_000, "is nested too deeply"),
        (b"lora_r: 8\n" + b"#" * 2**20, "is too large for a config file: it has more than 1,048,576 bytes"),
        (b"a: \x00\x01\xff", "is not valid YAML"),
        ("lora_r: 8\n".encode("utf-16"), "is not valid YAML"),
        (b"? [a]\n: b\n", "has a list or mapping as a key (line 1)"),
        (b"<<: {lora_r: 3}\n", "unknown setting <<"),
    ],
)
def test_files_that_are_no_settings(content: bytes, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    message, _ = complaint_of(lambda: resolve({}, file))
    assert complaint in message
    assert str(file) in message
    assert len(message) < 500


def test_an_endless_file_is_refused() -> None:
    message, _ = complaint_of(lambda: resolve({}, Path("/dev/zero")))
    assert message == "/dev/zero is too large for a config file: it has more than 1,048,576 bytes"


def test_aliases_cannot_fill_the_memory(yaml_file: WriteYaml) -> None:
    """Each line doubles the one before: as text, 2^40 items."""
    lines = ["a: &a0 [x, x]", *(f"a: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 40))]
    file = yaml_file("\n".join(lines) + "\n")
    message, _ = complaint_of(lambda: resolve({}, file))
    assert "is nested" in message
