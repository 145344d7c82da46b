"""The settings and rows of the training run that is predicted: a run's own, or what is assumed without one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmft_cli.base.reporter import Reporter
from llmft_cli.settings.config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from llmft_cli.run_dir.run import RunDir
    from llmft_cli.training.batches.sequences import Sequences


def settled(config: Config, shape: PreTrainedConfig, run: RunDir | None, reporter: Reporter) -> Config:
    """The settings as `train` would settle them; without a run, for full rows."""
    from llmft_cli.recipe.settle import counts_rows, settle
    from llmft_cli.training.planning.recipe import assumed_facts, facts_of_run

    config, _recipe = settle(config, facts_of_run(shape, run) if run else assumed_facts(shape, config.max_seq_length))
    if counts_rows(config) and not run:
        reporter.note(f"assuming rows of {config.max_seq_length:,} tokens (--max-seq-length), {config.rows_per_step} per step")
    return config


def sequences_of(run: RunDir, config: Config) -> Sequences:
    """The sequences that `train` makes of the run's rows with these settings."""
    from llmft_cli.data.store import training_rows
    from llmft_cli.training.batches.sequences import training_sequences

    prepared = run.require("prepare", allow_stale=False)["config"]
    return training_sequences(training_rows(run.data), replace(config, max_seq_length=prepared["max_seq_length"]))
