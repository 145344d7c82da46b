"""What a training run can be refused for before the weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmft_cli.base.errors import ConfigError, DataError
from llmft_cli.base.reporter import Reporter
from llmft_cli.data.store import TRAIN, VALIDATION, load_split
from llmft_cli.models.limits import Limits, limits_of_base
from llmft_cli.models.model_source import ModelSource
from llmft_cli.models.target_modules import ALL_LINEAR, check_target_modules, ranks_of, skeleton
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    import datasets

ROWS_AT_A_TIME = 10_000
# No layer of a real model is so narrow that a rank up to this needs a look at its layers.
ORDINARY_RANK = 64


def check_before_loading(run: RunDir, source: ModelSource, config: Config, reporter: Reporter) -> None:
    """Check that the run's data and the settings suit the model.

    Raises:
        ModelError: QLoRA cannot fine-tune the model.
        DataError: a row has more tokens, or a larger token id, than the model can process.
        ConfigError: a target module does not suit the model, or a setting needs held-out rows and there are none.
    """
    limits = limits_of_base(config, source)
    splits = [rows for name in (TRAIN, VALIDATION) if (rows := load_split(run.data, name)) is not None]
    if config.early_stopping_patience and len(splits) == 1:
        raise ConfigError(
            f"--early-stopping-patience {config.early_stopping_patience} needs held-out rows, and {run.path} has none",
            f"omit it, or hold rows out with: llmft prepare DATA --run {run.path} --val-size 5% --overwrite",
        )
    for rows in splits:
        check_rows(run, rows, limits)
    if config.target_modules != ALL_LINEAR or config.lora_r > ORDINARY_RANK:
        check_adapter(source, config, reporter)


def check_settings(config: Config) -> None:
    """Check the settings of a training run whose data is not prepared yet.

    Raises:
        ConfigError: a setting needs held-out rows, and none will be held out.
    """
    if config.early_stopping_patience and config.val_size == 0:
        raise ConfigError(
            f"--early-stopping-patience {config.early_stopping_patience} needs held-out rows, but --val-size is 0",
            "hold rows out, as with --val-size 5%, or omit --early-stopping-patience",
        )


def check_rows(run: RunDir, rows: datasets.Dataset, limits: Limits) -> None:
    """Check prepared rows against a model, which may be another than they were prepared for.

    Raises:
        DataError: as `check_before_loading`.
    """
    longest, last = longest_and_last(rows)
    if limits.fails_beyond and limits.positions is not None and longest > limits.positions:
        raise DataError(
            f"{run.path} has a row of {longest} tokens, but {limits.model} has only {limits.positions} positions",
            f"prepare again with: llmft prepare DATA --run {run.path} --max-seq-length {limits.positions} --overwrite",
        )
    if limits.embedding_rows is not None and last >= limits.embedding_rows:
        raise DataError(
            f"{run.path} has the token id {last}, but {limits.model} has embeddings for {limits.embedding_rows} tokens only "
            "(vocab_size in its config.json)",
            f"prepare again with: llmft prepare DATA --run {run.path} --overwrite",
        )


def longest_and_last(rows: datasets.Dataset) -> tuple[int, int]:
    """The tokens of the longest row, and the largest token id."""
    import pyarrow.compute

    longest, last = 0, 0
    for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(ROWS_AT_A_TIME):
        column = table["input_ids"]
        longest = max(longest, pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py())
        last = max(last, pyarrow.compute.max(pyarrow.compute.list_flatten(column)).as_py())
    return longest, last


def check_adapter(source: ModelSource, config: Config, reporter: Reporter) -> None:
    """Check the target modules on the model without its weights; warns of a rank that is larger than a layer's.

    Raises:
        ConfigError: as `check_before_loading`.
    """
    model = skeleton(source)
    check_target_modules(model, config)
    narrowest = min(ranks_of(model, config), default=config.lora_r)
    if config.lora_r > narrowest:
        reporter.warn(f"--lora-r {config.lora_r} is more than the rank that an update of some layers can have ({narrowest})")
