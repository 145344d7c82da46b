"""Which interrupted training runs can be resumed, and with which settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import ConfigError, StageError
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.training.loop import checkpoints

# Settings that do not change the result, except for rounding.
MAY_CHANGE_ON_RESUME = {"device", "logging_steps", "save_total_limit", "report_to", "wandb_project", "eval_batch_size"}
MAY_CHANGE_ON_RESUME |= {"gradient_checkpointing", "plan", "max_vram", "fast"}
MAY_CHANGE_ON_RESUME |= {"compute_dtype"}  # `compute_types.settled` keeps the recorded type
# Nor do these, as long as their product is the same.
EFFECTIVE_BATCH = ("batch_size", "gradient_accumulation_steps")


def check_same_data_settings(run: RunDir, prepared: Mapping[str, Any], config: Config) -> None:
    """Check that the data was prepared with the settings requested now; the seed may differ.

    Raises:
        StageError: it was not.
    """
    for name, value in prepared.items():
        wanted = getattr(config, name, value)
        if wanted != value and name != "seed" and not is_reduced_default(name, value, wanted):
            flag = settings.flag_of(name)
            hint = f"prepare again: llmft prepare DATA --run {run.path} {flag} {wanted} --overwrite"
            raise StageError(f"{run.path} was prepared with {flag} {value}, not {wanted}", hint)


def is_reduced_default(name: str, prepared: Any, wanted: Any) -> bool:
    """Whether `prepare` may have reduced the default itself, to the model's positions."""
    return name == "max_seq_length" and bool(prepared < wanted == settings.FIELDS[name].default)


def start_or_resume(run: RunDir, config: Config, resume: bool, overwrite: bool) -> tuple[Path | None, Mapping[str, Any]]:
    """The checkpoint to resume from and what the interrupted training run recorded; None and nothing for a new training run.

    Raises:
        StageError: there is nothing to resume, or a new training run would delete checkpoints and `overwrite` is not set.
        ConfigError: settings that change the result differ.
    """
    if resume:
        return checkpoint_to_resume(run, config), run.entry("train") or {}
    if not overwrite:
        refuse_to_forget_checkpoints(run)
    return None, {}


def checkpoint_to_resume(run: RunDir, config: Config) -> Path:
    """The last complete checkpoint of an interrupted training run with the same settings.

    Raises:
        StageError: there is nothing to resume.
        ConfigError: settings that change the result differ.
    """
    entry = run.entry("train")
    if entry is not None and entry["status"] == "done":
        raise StageError(f"{run.path}: train is already done, there is nothing to resume")
    checkpoint = checkpoints.last_complete(run.checkpoints) if entry else None
    if entry is None or checkpoint is None:
        raise StageError(f"{run.path} has no checkpoint to resume from", f"start with: llmft train {run.path}")
    # If batches are filled by tokens, `batch_size` is not recorded.
    recorded, given = {"tokens_per_batch": None} | entry["config"], settings.of_command(config, "train")
    before, now = (math.prod(values.get(name, 1) for name in EFFECTIVE_BATCH) for values in (recorded, given))
    may_change = MAY_CHANGE_ON_RESUME.union(EFFECTIVE_BATCH if before == now else ())
    for name, value in recorded.items():
        wanted = getattr(config, name)
        if wanted != value and name not in may_change:
            flag = settings.flag_of(name)
            surplus = "--batch-size" if name == "tokens_per_batch" and wanted is None else flag
            raise ConfigError(
                f"{flag} was {value} before the interruption and is {wanted} now",
                f"omit {surplus}, or start over with --overwrite",
            )
    checkpoints.make_movable(checkpoint)
    return checkpoint


def refuse_to_forget_checkpoints(run: RunDir) -> None:
    """Check that no interrupted training run would be lost: starting over deletes hours of work and needs `--overwrite`.

    Raises:
        StageError: there is a checkpoint of an interrupted training run.
    """
    entry = run.entry("train")
    checkpoint = checkpoints.last_complete(run.checkpoints)
    if entry is not None and entry["status"] != "done" and checkpoint is not None:
        raise StageError(
            f"{run.path}: an earlier training run stopped at step {checkpoints.step_of(checkpoint)}",
            f"resume with: llmft train {run.path} --resume, or start over with --overwrite",
        )
