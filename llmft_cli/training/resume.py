"""What a training is, and which interrupted ones can be resumed with which settings."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import ConfigError, StageError
from llmft_cli.base.libraries import hardware, versions
from llmft_cli.base.reporter import Reporter
from llmft_cli.models.model_source import ModelSource
from llmft_cli.run_dir import checkpoints
from llmft_cli.run_dir.checkpoints import Identity
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config as settings
from llmft_cli.settings.config import Config
from llmft_cli.training.plan import Plan

# Settings that do not change the result, except for rounding.
MAY_CHANGE_ON_RESUME = {"device", "logging_steps", "save_total_limit", "report_to", "wandb_project", "eval_batch_size"}
MAY_CHANGE_ON_RESUME |= {"gradient_checkpointing", "plan", "max_vram", "fast"}
MAY_CHANGE_ON_RESUME |= {"compute_dtype"}  # `compute_types.settled` keeps the recorded type
# Nor do these, as long as their product is the same.
EFFECTIVE_BATCH = ("batch_size", "gradient_accumulation_steps")


def new_identity(config: Config, inputs: Mapping[str, str], source: ModelSource) -> Identity:
    """What a new training is: an id, and hashes of all that shapes its result. Its checkpoints carry it.

    Args:
        config: the settings as given, before a plan changes how a batch is split.
        inputs: sha256 of what it reads, by path.
    """
    used = settings.of_command(config, "train")
    batch = effective_batch(used)
    shaping = {name: value for name, value in used.items() if name not in MAY_CHANGE_ON_RESUME.union(EFFECTIVE_BATCH)}
    content = json.dumps({**shaping, "sequences_per_step": batch}, sort_keys=True)
    return {
        "id": uuid.uuid4().hex,
        "inputs": dict(inputs),
        "base": source.fingerprint,
        "settings": hashlib.sha256(content.encode()).hexdigest(),
    }


def facts_of(source: ModelSource, config: Config, training: Identity, plan: Plan) -> dict[str, Any]:
    """What the ledger records of a training run before it begins."""
    facts = {"training": training, "model": source.facts(), "seed": config.seed, "compute_dtype": config.compute_dtype}
    facts["plan"] = asdict(plan)
    return facts | {"versions": versions(), "hardware": hardware()}


def begin_or_resume(run: RunDir, config: Config, resume: bool, overwrite: bool) -> dict[str, Any]:
    """The ledger entry of the training to resume; nothing for a new one.

    Raises:
        StageError: there is nothing to resume, or a new training run would delete checkpoints and `overwrite` is not set.
        ConfigError: settings that change the result differ.
    """
    if resume:
        return training_to_resume(run, config)
    if not overwrite:
        refuse_to_forget_checkpoints(run)
    return {}


def with_data_settings(run: RunDir, prepared: Mapping[str, Any], config: Config) -> Config:
    """The settings, with the length that the data was prepared for.

    Args:
        prepared: the settings of prepare. The seed may differ, and so may what is no setting of prepare any more.

    Raises:
        StageError: the data was prepared with other settings than those requested now.
    """
    requested = settings.of_command(config, "prepare")
    for name, value in prepared.items():
        wanted = requested.get(name, value)
        if wanted != value and name != "seed" and not is_reduced_default(name, value, wanted):
            flag = settings.flag_of(name)
            hint = f"prepare again: llmft prepare DATA --run {run.path} {flag} {wanted} --overwrite"
            raise StageError(f"{run.path} was prepared with {flag} {value}, not {wanted}", hint)
    return replace(config, max_seq_length=prepared.get("max_seq_length", config.max_seq_length))


def is_reduced_default(name: str, prepared: Any, wanted: Any) -> bool:
    """Whether `prepare` may have reduced the default itself, to the model's positions."""
    return name == "max_seq_length" and bool(prepared < wanted == settings.FIELDS[name].default)


def training_to_resume(run: RunDir, config: Config) -> dict[str, Any]:
    """The ledger entry of an interrupted training with the same data and settings.

    Raises:
        StageError: there is nothing to resume, or the data has changed since.
        ConfigError: settings that change the result differ.
    """
    entry = run.entry("train")
    if entry is not None and entry["status"] == "done":
        raise StageError(
            f"{run.path}: train is already done, there is nothing to resume",
            f"to train its adapter further: llmft train {run.path} --continue",
        )
    if entry is None or not run.resumable_checkpoints(entry):
        start = f"{run.command_for('train')}{run.flag_to_go_on(entry) if entry else ''}"
        raise StageError(f"{run.path} has no checkpoint to resume from", f"start with: {start}")
    if changed := run.changed_path(entry["inputs"]):
        raise StageError(
            f"{run.path}: {changed} has changed since the interrupted training began, so it cannot be resumed",
            f"start over with: llmft train {run.path} --overwrite",
        )
    check_same_settings(entry["config"], config)
    return entry


def check_same_settings(before: Mapping[str, Any], config: Config) -> None:
    """Check that the settings that change the result are those of the interrupted training.

    Raises:
        ConfigError: one differs.
    """
    # If batches are filled by tokens, `batch_size` is not recorded.
    recorded, given = {"tokens_per_batch": None} | dict(before), settings.of_command(config, "train")
    may_change = MAY_CHANGE_ON_RESUME.union(EFFECTIVE_BATCH if effective_batch(recorded) == effective_batch(given) else ())
    for name, value in recorded.items():
        wanted = getattr(config, name)
        if wanted != value and name not in may_change:
            flag = settings.flag_of(name)
            surplus = flag if wanted is not None else next(map(settings.flag_of, given_instead(name, config)), flag)
            raise ConfigError(
                f"{flag} was {value} before the interruption and is {wanted} now",
                f"omit {surplus}, or start over with --overwrite",
            )


def effective_batch(used: Mapping[str, Any]) -> int:
    """Sequences per optimizer step; 1 where rows or tokens are counted."""
    return math.prod(used.get(name) or 1 for name in EFFECTIVE_BATCH)


def given_instead(name: str, config: Config) -> Iterator[str]:
    """The settings that exclude one and are set."""
    for pair in settings.ALTERNATIVES:
        if name in pair.names:
            yield from (other for other in pair.names if other != name and getattr(config, other) is not None)


def checkpoint_to_resume(run: RunDir, training: Identity, reporter: Reporter) -> Path:
    """The newest intact checkpoint of a training in its run; damaged ones are told.

    Raises:
        StageError: there is none.
    """
    if found := intact_checkpoint(run.checkpoints, training, reporter):
        return found
    raise StageError(
        f"{run.checkpoints} has no intact checkpoint of this training",
        f"start over with: llmft train {run.path} --overwrite",
    )


def intact_checkpoint(folder: Path, training: Identity, reporter: Reporter) -> Path | None:
    """The newest checkpoint of a training whose files are as they were written, or None; damaged ones are told."""
    for checkpoint in checkpoints.of_training(folder, training["id"]):
        reason = checkpoints.why_not_resumable(checkpoint, training)
        if reason is None:
            return checkpoint
        reporter.warn(f"{reason}: looking for an earlier checkpoint than step {checkpoints.step_of(checkpoint)}")
    return None


def refuse_to_forget_checkpoints(run: RunDir) -> None:
    """Check that no interrupted training run would be lost: starting over deletes hours of work and needs `--overwrite`.

    Raises:
        StageError: there is a checkpoint of an interrupted training run.
    """
    entry = run.entry("train")
    if entry is None or entry["status"] == "done":
        return
    for newest in run.resumable_checkpoints(entry)[:1]:
        changed = run.changed_path(entry["inputs"])
        raise StageError(
            f"{run.path}: an earlier search has not ended"
            if "search" in entry
            else f"{run.path}: an earlier training run stopped at step {checkpoints.step_of(newest)}",
            f"start over with: llmft train {run.path} --overwrite"
            if changed
            else f"resume with: llmft train {run.path} --resume, or start over with --overwrite",
        )
