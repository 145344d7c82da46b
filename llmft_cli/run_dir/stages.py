"""Running a stage: a stage is done only when its ledger entry says so; the entry is written last and atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import Interrupted, StageError, is_interrupt
from llmft_cli.base.files import check_place, hash_path, write_atomically
from llmft_cli.run_dir.ledger import new_ledger, now, settings_of
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config


@dataclass
class StageRecord:
    """What a running stage will record in the ledger.

    Attributes:
        outputs: paths it created, relative to the run.
        facts: other values to record (model, headline numbers, ...).
        resumable: whether an interrupted stage can be resumed from what it has written.
        save_facts: writes the facts so far to the ledger, so that they survive a kill.
    """

    outputs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    resumable: bool = False
    save_facts: Callable[[], None] = field(default=lambda: None)


@contextmanager
def stage(
    run: RunDir, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str], overwrite: bool, resume: bool = False
) -> Iterator[StageRecord]:
    """Run a stage: hold the lock, and write the ledger entry at its start and at its end.

    Args:
        name: the stage's key in the ledger.
        settings: the settings it uses.
        inputs: sha256 of what it reads, by path (relative to the run, or absolute outside it).
        overwrite: redo a finished stage.
        resume: continue an interrupted stage.

    Raises:
        StageError: the stage is already done, or another process is writing to this run.
    """
    made = make_directory(run)
    with run.lock():
        previous = run.entry(name)
        if previous and previous["status"] == "done" and not (overwrite or resume):
            raise StageError(f"{run.path}: {name} is already done", "to redo it, add --overwrite")
        entry = {"status": "running", "started": now(), "config": dict(settings), "inputs": dict(inputs)}
        try:
            write_entry(run, name, entry)
            with ending_of(run, name, entry, previous) as record:
                yield record
        except BaseException:
            remove_unless_used(run, made)
            raise


@contextmanager
def ending_of(run: RunDir, name: str, entry: dict[str, Any], previous: dict[str, Any] | None) -> Iterator[StageRecord]:
    """Record how a stage ended."""
    record = StageRecord()
    record.save_facts = lambda: write_entry(run, name, {**entry, **record.facts})
    try:
        yield record
        record.facts["outputs"] = {output: hash_path(run.path / output) for output in record.outputs}
        write_entry(run, name, {**entry, **record.facts, "status": "done", "finished": now()})
    except BaseException as error:
        # On a full disk this fails too; the original error matters more.
        with suppress(OSError):
            write_entry(run, name, unfinished_entry(run, entry, record, previous, error))
        raise


def make_directory(run: RunDir) -> list[Path]:
    """Create the run's directory; returns the created directories, innermost first."""
    check_place(run.path)
    missing = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    run.path.mkdir(parents=True, exist_ok=True)
    return missing


def unfinished_entry(
    run: RunDir, entry: dict[str, Any], record: StageRecord, previous: dict[str, Any] | None, error: BaseException
) -> dict[str, Any]:
    """The entry of an interrupted or failed stage; the previous entry if its outputs are intact."""
    outputs = previous["outputs"] if previous and previous["status"] == "done" else {}
    there = outputs and all((run.path / output).exists() for output in outputs)
    if previous and there and not record.resumable and not run.changed_path(outputs):
        return previous
    status = "interrupted" if isinstance(error, Interrupted) or is_interrupt(error) else "failed"
    return {**entry, **record.facts, "status": status, "finished": now()}


def write_entry(run: RunDir, stage: str, entry: Mapping[str, Any]) -> None:
    ledger = run.ledger() if run.exists() else new_ledger()
    ledger["stages"][stage] = entry
    ledger["updated"] = now()
    write_atomically(run.config_file, config.dump(settings_of(ledger, "prepare", "train")))
    write_atomically(run.ledger_file, json.dumps(ledger, indent=2) + "\n")


def remove_unless_used(run: RunDir, made: Sequence[Path]) -> None:
    """Delete a new run that has nothing usable in it."""
    stages = run.ledger()["stages"] if run.exists() else {}
    if not made or run.checkpoints.exists() or any(entry["status"] == "done" for entry in stages.values()):
        return
    shutil.rmtree(run.path, ignore_errors=True)
    with suppress(OSError):  # another run may have been created in a parent meanwhile
        for folder in made[1:]:
            folder.rmdir()
