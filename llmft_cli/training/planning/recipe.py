"""The recipe of a training run: what it is chosen from, and what of it is recorded and told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmft_cli.base.reporter import Reporter
from llmft_cli.data.store import VALIDATION, load_split, training_rows
from llmft_cli.models.config_lookup import read_shape
from llmft_cli.models.model_source import ModelSource
from llmft_cli.recipe.facts import Facts
from llmft_cli.recipe.settle import Recipe, in_words, settle
from llmft_cli.run_dir.run import RunDir
from llmft_cli.run_dir.stages import StageRecord
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.training.batches.stored_rows import StoredRows

ASSUMED_ROWS = 10_000

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedConfig


def settle_recipe(record: StageRecord, facts: Facts, config: Config, reporter: Reporter) -> Config:
    """The settings without `auto`: those of a training to resume are settled already."""
    settled, recipe = settle(config, facts)
    if settled != config:
        record_recipe(record, settled, recipe)
    for line in in_words(recipe):
        reporter.note(line)
    return settled


def record_recipe(record: StageRecord, settled: Config, recipe: Recipe) -> None:
    """Record the settings that a training uses, and why those of them were chosen that nobody gave."""
    record.facts["recipe"] = {name: choice._asdict() for name, choice in recipe.items()}
    record.settle(settings.of_command(settled, "train"))


def facts_of_training(source: ModelSource, config: Config, run: RunDir) -> Facts:
    """As `facts_of`, for the base model and the rows of a run."""
    return facts_of_run(read_shape(source.name, source.path, trust_remote_code=config.trust_remote_code), run)


def facts_of_run(shape: PreTrainedConfig, run: RunDir) -> Facts:
    """As `facts_of`, for the rows of a prepared run."""
    return facts_of(shape, training_rows(run.data), load_split(run.data, VALIDATION))


def assumed_facts(shape: PreTrainedConfig, tokens_per_row: int) -> Facts:
    """Facts without rows: those of many full ones."""
    tokens = ASSUMED_ROWS * tokens_per_row
    return Facts(shape.get_text_config().hidden_size, ASSUMED_ROWS, tokens, tokens, tokens_per_row, 0, 0)


def facts_of(shape: PreTrainedConfig, rows: datasets.Dataset, held_out: datasets.Dataset | None) -> Facts:
    """The facts of a model's config, and of training and held-out rows. Reads all labels of the training rows."""
    stored = StoredRows(rows)
    held_out_lengths = [] if held_out is None else StoredRows(held_out).lengths.tolist()
    return Facts(
        hidden_size=shape.get_text_config().hidden_size,
        rows=len(stored),
        tokens=int(stored.lengths.sum()),
        supervised_tokens=int(stored.supervised.sum()),
        longest_row_tokens=int(stored.lengths.max()),
        held_out_rows=len(held_out_lengths),
        held_out_tokens=sum(held_out_lengths),
    )
