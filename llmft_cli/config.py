"""The one config: every setting is defined here once, with its default, unit, range and help text.

The flags, the YAML keys and the file saved in the run all come from these fields. Precedence:
flag, then `--config FILE`, then what the run was prepared or trained with, then the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from llmft_cli.errors import ConfigError
from llmft_cli.setting import Command, Setting, rows_or_share, setting, share

DEFAULT_MODEL = "meta-llama/Llama-2-7b-chat-hf"
LARGEST_SEED = 2**32 - 1  # numpy takes no larger one


@dataclass(frozen=True)
class Config:
    """All settings of a run, checked. Field names are the flags' with underscores."""

    # -- model
    model: str = setting(
        DEFAULT_MODEL,
        "Hub id, local directory, .gguf file, or smollm2-135m (built in).",
        "Model",
        "prepare train",
    )
    revision: str | None = setting(None, "Branch, tag or commit of a Hub model.", "Model", "prepare train")
    trust_remote_code: bool = setting(False, "Run code that the model's repository brings.", "Model", "prepare train")
    chat_template: str | None = setting(
        None, "Jinja file to use as chat template, or `plain` for models without one.", "Model", "prepare train"
    )
    quantization: str = setting(
        "nf4", "How the frozen base weights are held.", "Model", "train", choices=("nf4", "fp4", "int8", "none")
    )
    device: str = setting("auto", "Where to compute.", "Model", "train merge eval chat", choices=("auto", "cuda", "cpu"))
    # -- data
    format: str = setting(
        "auto",
        "Form of the rows; auto recognises it by content.",
        "Data",
        "prepare train",
        choices=(
            "auto",
            "messages",
            "sharegpt",
            "alpaca",
            "prompt-completion",
            "question-answer",
            "text",
            "tokens",
        ),
    )
    columns: str | None = setting(
        None, "Columns under other names: prompt=question,completion=answer (ours=theirs).", "Data", "prepare train"
    )
    dataset_split: str = setting("train", "Which split of a Hub dataset to read.", "Data", "prepare train")
    max_seq_length: int = setting(2048, "Longest row, in tokens.", "Data", "prepare train", minimum=8)
    on_overlength: str = setting(
        "drop",
        "What to do with a row that is longer.",
        "Data",
        "prepare train",
        choices=("drop", "truncate", "split", "error"),
    )
    train_on: str = setting(
        "assistant",
        "What is learned: all answers, the last one of each conversation, or every token.",
        "Data",
        "prepare train",
        choices=("assistant", "last", "all"),
    )
    packing: bool = setting(
        True, "Put several rows into one sequence, without attention between them.", "Data", "prepare train"
    )
    val_size: float = setting(
        0.05,
        "Rows held out: a share below 1 (or 5%), or a number of rows.",
        "Data",
        "prepare train",
        minimum=0,
        parse=rows_or_share,
        form="a share below 1 (0.05 or 5%) or a number of rows",
    )
    max_rejected: float = setting(
        0.05,
        "Share of bad rows (0.05 or 5%) above which the data is refused.",
        "Data",
        "prepare train",
        minimum=0,
        maximum=1,
        parse=share,
        form="a share (0.05 or 5%)",
    )
    weights: str | None = setting(
        None,
        "How often each source's training rows are used, in the order of the sources: 2,0.5 doubles and halves.",
        "Data",
        "prepare train",
    )
    max_rows: str | None = setting(
        None, "Most rows to take of each source: one number for all, or one for each (1000,500).", "Data", "prepare train"
    )
    near_duplicates: bool = setting(
        True, "Look for rows that are nearly the same, and keep them on one side of the split.", "Data", "prepare train"
    )
    strict: bool = setting(False, "Refuse data that a check warns of.", "Data", "prepare train")
    # -- training
    learning_rate: float = setting(2e-4, "Peak learning rate.", "Training", "train", above=0, below=1)
    num_epochs: float = setting(3.0, "Passes over the training rows.", "Training", "train", above=0)
    max_steps: int | None = setting(
        None, "Stop after this many optimizer steps, whatever num_epochs says.", "Training", "train", minimum=1
    )
    batch_size: int = setting(4, "Sequences in one forward pass.", "Training", "train", minimum=1)
    gradient_accumulation_steps: int = setting(4, "Forward passes per optimizer step.", "Training", "train", minimum=1)
    warmup_ratio: float = setting(
        0.03, "Share of the steps with rising learning rate.", "Training", "train", minimum=0, maximum=1
    )
    lr_scheduler: str = setting(
        "cosine",
        "Learning rate schedule.",
        "Training",
        "train",
        choices=("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts"),
    )
    weight_decay: float = setting(0.0, "Decoupled weight decay.", "Training", "train", minimum=0)
    max_grad_norm: float = setting(0.3, "Gradient norm to clip at; 0 turns clipping off.", "Training", "train", minimum=0)
    optim: str = setting(
        "adamw_torch", "Optimizer, by transformers' name (adamw_torch, paged_adamw_8bit, ...).", "Training", "train"
    )
    gradient_checkpointing: bool | None = setting(
        None, "Recompute activations in the backward pass; by default on a GPU only.", "Training", "train"
    )
    seed: int = setting(
        42,
        "Seed of the split, the order and the initialisation.",
        "Training",
        "prepare train chat",
        minimum=0,
        maximum=LARGEST_SEED,
    )
    # -- adapter
    lora_r: int = setting(16, "Rank of the LoRA matrices.", "Adapter", "train", minimum=1)
    lora_alpha: float = setting(32, "LoRA scaling numerator (scaling = alpha / r).", "Adapter", "train", above=0)
    lora_dropout: float = setting(0.0, "Dropout on the input of the LoRA matrices.", "Adapter", "train", minimum=0, below=1)
    target_modules: str = setting(
        "all-linear", "Modules to adapt: all-linear, or names with commas (q_proj,v_proj).", "Adapter", "train"
    )
    use_rslora: bool = setting(False, "Rank-stabilised LoRA: scaling = alpha / sqrt(r).", "Adapter", "train")
    use_dora: bool = setting(False, "Weight-decomposed LoRA (DoRA).", "Adapter", "train")
    init_lora_weights: str = setting(
        "default",
        "Initialisation of the LoRA matrices, as PEFT names it.",
        "Adapter",
        "train",
        choices=("default", "gaussian", "orthogonal"),
    )
    # -- evaluation during training and logging
    eval_steps: float = setting(
        0.2, "Evaluate and save every so many steps, or every share (below 1) of the steps.", "Watching", "train", above=0
    )
    load_best_model_at_end: bool = setting(
        True, "Take the adapter of the best evaluation, not of the last step.", "Watching", "train"
    )
    early_stopping_patience: int | None = setting(
        None, "Stop after this many evaluations without a better loss.", "Watching", "train", minimum=1
    )
    save_total_limit: int = setting(2, "Checkpoints to keep (the best is always kept).", "Watching", "train", minimum=1)
    logging_steps: int = setting(1, "Log every so many optimizer steps.", "Watching", "train", minimum=1)
    report_to: str = setting("none", "Experiment tracker to report to.", "Watching", "train", choices=("none", "wandb"))
    wandb_project: str = setting("llm-fine-tuning", "Weights & Biases project.", "Watching", "train")
    # -- generation
    max_new_tokens: int = setting(256, "Longest answer, in tokens.", "Generation", "eval chat", minimum=1)
    eval_batch_size: int = setting(8, "Sequences in one forward pass of the evaluation.", "Generation", "train eval", minimum=1)
    temperature: float = setting(0.0, "Sampling temperature; 0 is greedy.", "Generation", "chat", minimum=0)
    top_p: float = setting(
        1.0, "Sample from the likeliest tokens that hold this probability.", "Generation", "chat", above=0, maximum=1
    )


# Names that users of transformers' Trainer know, accepted in a config file.
ALIASES = {
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "lr_scheduler_type": "lr_scheduler",
    "model_name_or_path": "model",
}


@dataclass(frozen=True)
class Field:
    """A config field as the command line needs it."""

    name: str
    type: type
    optional: bool
    default: Any
    setting: Setting


def fields() -> Iterator[Field]:
    hints = get_type_hints(Config)
    for item in dataclasses.fields(Config):
        hint = hints[item.name]
        optional = get_origin(hint) in (Union, UnionType)
        base = next(arg for arg in get_args(hint) if arg is not type(None)) if optional else hint
        yield Field(item.name, base, optional, item.default, item.metadata["setting"])


FIELDS = {item.name: item for item in fields()}


def resolve(flags: Mapping[str, Any], file: Path | None = None, saved: Mapping[str, Any] | None = None) -> Config:
    """One checked config from its layers.

    Args:
        flags: what was given on the command line, by field name; None means not given.
        file: a YAML file of settings, or None.
        saved: the settings that the run was prepared or trained with, or None.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, an unreadable file.
    """
    values: dict[str, Any] = {}
    for name, value in (saved or {}).items():
        if name in FIELDS:
            values[name] = value
    if file is not None:
        for name, value in read_file(file).items():
            values[name] = checked(name, value, f"{name} in {file}")
    for name, value in flags.items():
        if value is not None:
            values[name] = checked(name, value, flag_of(name))
    return Config(**values)


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_file(path: Path) -> dict[str, Any]:
    """Settings from a flat YAML file, by field name; dashes and transformers' long names are accepted.

    Raises:
        ConfigError: it cannot be read, is no flat YAML, or has an unknown or repeated setting.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings as `key: value` lines, not a {type(content).__name__}")
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = known_name(str(key), path)
        if name in values:
            raise ConfigError(f"{name} is set twice in {path}, the second time as {key}", "keep one of them")
        values[name] = value
    return values


def known_name(key: str, path: Path) -> str:
    name = key.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in FIELDS:
        near = difflib.get_close_matches(name, [*FIELDS, *ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else "`llmft train --help` lists the settings"
        raise ConfigError(f"unknown setting {key} in {path}", hint)
    return name


def checked(name: str, value: Any, origin: str) -> Any:
    """`value` in the field's type and within its range; `origin` says where it stands."""
    item = FIELDS[name]
    if value is None:
        if item.optional:
            return None
        raise ConfigError(f"{origin} has no value")
    try:
        typed = convert(item, value)
    except (TypeError, ValueError):
        raise ConfigError(f"{origin}: {value!r} is not {described(item)}") from None
    complaint = item.setting.complaint(typed)
    if complaint:
        raise ConfigError(f"{origin}: {typed!r} {complaint}")
    return typed


def convert(item: Field, value: Any) -> Any:
    if item.type is bool or isinstance(value, bool):
        if item.type is not bool or not isinstance(value, bool):
            raise TypeError
        return value
    if item.type is str:
        if item.name == "target_modules" and isinstance(value, list):
            return ",".join(map(str, value))
        if not isinstance(value, str):
            raise TypeError
        return value
    # YAML 1.1 reads 2e-4 as text, so text that is a number is taken as one.
    number = (item.setting.parse or float)(str(value))
    if not math.isfinite(number) or (item.type is int and number != int(number)):
        raise ValueError
    return int(number) if item.type is int else number


def described(item: Field) -> str:
    """What a value of this field must be."""
    return item.setting.form or {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[item.type]


def dump(values: Mapping[str, Any]) -> str:
    """Settings as YAML text in ASCII, spelled as `read_file` takes them; PyYAML loses U+0085 when it writes Unicode."""
    import yaml

    return yaml.safe_dump(dict(values), sort_keys=False)


def of_command(config: Config, command: Command) -> dict[str, Any]:
    """The settings that `command` uses, by field name."""
    return {name: getattr(config, name) for name, item in FIELDS.items() if command in item.setting.commands}
