"""Running a stage: a stage is done only when its ledger entry says so; the entry is written last and atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmft_cli.base.errors import Interrupted, StageError, is_interrupt
from llmft_cli.base.files import check_place, hash_path, remove_leftovers, replacing_directory, write_atomically
from llmft_cli.run_dir.ledger import PREVIOUS, entries_before, new_ledger, now, settings_of
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings import config


@dataclass
class StageRecord:
    """A running stage, and what the ledger will record of it.

    Attributes:
        entry: its ledger entry so far. Until `begin`, it holds the entry that it replaces under `previous`.
        outputs: paths it created, relative to the run.
        facts: other values to record (model, headline numbers, ...).
    """

    run: RunDir
    name: str
    entry: dict[str, Any]
    outputs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def replacing(self, output: str) -> Iterator[Path]:
        """A new directory for an output. What it replaces is kept until the ledger says that the stage is done."""
        with replacing_directory(self.run.path / output, keep_old=True) as folder:
            yield folder
        self.outputs.append(output)

    def settle(self, settings: Mapping[str, Any]) -> None:
        """Record the settings with the values of those that were left open."""
        self.entry["config"] = dict(settings)
        self.save_facts()

    def save_facts(self) -> None:
        """Write the facts so far to the ledger, so that they survive a kill."""
        write_entry(self.run, self.name, {**self.entry, **self.facts})

    def begin(self) -> None:
        """Record that the results before it are about to be lost: from now on, this stage is what can be resumed."""
        self.entry.pop(PREVIOUS, None)
        self.save_facts()


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
        tidy(run)
        previous = run.entry(name, locked_here=True)
        if previous and previous["status"] == "done" and not (overwrite or resume):
            more = f", or train its adapter further: llmft train {run.path} --continue" if name == "train" else ""
            raise StageError(f"{run.path}: {name} is already done", f"to redo it, add --overwrite{more}")
        entry = {"status": "running", "started": now(), "config": dict(settings), "inputs": dict(inputs)}
        if previous:
            entry = {**previous, **entry} if resume else {**entry, PREVIOUS: previous}
        try:
            write_entry(run, name, entry)
            with ending_of(StageRecord(run, name, entry)) as record:
                yield record
        except BaseException:
            remove_unless_used(run, made)
            raise
        remove_all_leftovers(run)


@contextmanager
def ending_of(record: StageRecord) -> Iterator[StageRecord]:
    """Record how a stage ended."""
    run = record.run
    try:
        yield record
        record.facts["outputs"] = {output: hash_path(run.path / output) for output in record.outputs}
        finished = {name: value for name, value in record.entry.items() if name != PREVIOUS}
        write_entry(run, record.name, {**finished, **record.facts, "status": "done", "finished": now()})
    except BaseException as error:
        # On a full disk this fails too; the original error matters more.
        with suppress(OSError):
            run.put_back_outputs()
            write_entry(run, record.name, unfinished_entry(record, error))
        raise


def tidy(run: RunDir) -> None:
    """Undo what a killed redo has replaced, and delete what killed commands have left. The caller holds the lock."""
    if run.exists():
        run.put_back_outputs()
        for name, entry in entries_before(run.ledger()["stages"]).items():
            write_entry(run, name, entry)
    remove_all_leftovers(run)


def remove_all_leftovers(run: RunDir) -> None:
    for folder in (run.path, run.evaluations, run.earlier, run.search):
        remove_leftovers(folder)


def make_directory(run: RunDir) -> list[Path]:
    """Create the run's directory; returns the created directories, innermost first."""
    check_place(run.path)
    missing = [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    run.path.mkdir(parents=True, exist_ok=True)
    return missing


def unfinished_entry(record: StageRecord, error: BaseException) -> dict[str, Any]:
    """The entry of an interrupted or failed stage; the one before if nothing of it is lost."""
    previous: dict[str, Any] | None = record.entry.pop(PREVIOUS, None)
    if previous and not (previous["status"] == "done" and record.run.lost_output(previous)):
        return previous
    status = "interrupted" if isinstance(error, Interrupted) or is_interrupt(error) else "failed"
    return {**record.entry, **record.facts, "status": status, "finished": now()}


def write_entry(run: RunDir, stage: str, entry: Mapping[str, Any]) -> None:
    ledger = run.ledger() if run.exists() else new_ledger()
    ledger["stages"][stage] = entry
    ledger["updated"] = now()
    write_atomically(run.config_file, config.dump(settings_of(ledger["stages"], "prepare", "train")))
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
