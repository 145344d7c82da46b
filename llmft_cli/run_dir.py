"""The run directory, through which commands share results, and its ledger `run.json`.

A stage is done only when its ledger entry says so; the entry is written last and atomically. Directories appear
complete or not at all. A lock keeps out a second writer; the operating system releases it if its holder dies.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmft_cli.base.errors import Interrupted, StageError, is_interrupt
from llmft_cli.base.files import check_place, hash_path, write_atomically
from llmft_cli.settings import config

SCHEMA_VERSION = 1
RUNS_ROOT = Path("runs")
# The stage that each command needs, and the command that runs each stage.
NEEDS = {"prepare": None, "train": "prepare", "merge": "train", "eval": "train", "chat": "train"}
COMMAND_LINES = {"prepare": "llmft prepare DATA --run {run}", "train": "llmft train {run}", "merge": "llmft merge {run}"}
CREATE_ONE = "create one with: llmft prepare DATA --run RUN"
RESTORE = "restore it from a backup, or create a new run"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


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


@dataclass(frozen=True)
class RunDir:
    """Paths of a run and its ledger."""

    path: Path

    @property
    def ledger_file(self) -> Path:
        return self.path / "run.json"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def loss_chart(self) -> Path:
        return self.path / "loss.svg"

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def transcripts(self) -> Path:
        return self.path / "chat"

    def exists(self) -> bool:
        return self.ledger_file.is_file()

    def ledger(self) -> dict[str, Any]:
        """The ledger's content.

        Raises:
            StageError: there is no run here, its ledger is damaged, or a newer llmft wrote it.
        """
        try:
            content = json.loads(self.ledger_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise StageError(f"{self.path} is not a run (it has no run.json)", CREATE_ONE) from None
        except (ValueError, OSError) as error:
            raise StageError(f"{self.ledger_file} cannot be read: {error}", RESTORE) from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if not isinstance(version, int) or not isinstance(content.get("stages"), dict):
            raise StageError(f"{self.ledger_file} is not an llmft ledger", RESTORE)
        if version > SCHEMA_VERSION:
            raise StageError(f"{self.ledger_file} was written by a newer llmft (schema {version})", "upgrade llmft")
        return content

    def entry(self, stage: str) -> dict[str, Any] | None:
        """The ledger entry of a stage in any status, or None."""
        return self.ledger()["stages"].get(stage) if self.exists() else None

    def is_done(self, stage: str) -> bool:
        entry = self.entry(stage)
        return entry is not None and entry["status"] == "done"

    def require(self, stage: str, allow_stale: bool = False) -> dict[str, Any]:
        """The entry of a finished stage with unchanged inputs and outputs.

        Raises:
            StageError: the stage is not done, its outputs are missing or changed, or it is stale.
        """
        entry = self.ledger()["stages"].get(stage)
        if entry is None or entry["status"] != "done":
            raise self._not_done(stage, entry)
        again = f"recreate it: {self.command_for(stage)} --overwrite"
        for name in entry["outputs"]:
            if not (self.path / name).exists():
                raise StageError(f"{self.path / name} is missing", again)
        if not allow_stale:
            changed = self.changed_path({**entry["inputs"], **entry["outputs"]})
            if changed:
                stale = f"{self.path}: the stage {stage} is stale: {changed} has changed since"
                raise StageError(stale, f"{again}; or use it as it is: train, merge, eval and chat take --allow-stale")
            if before := NEEDS[stage]:
                self.require(before)
        return entry

    def command_for(self, stage: str) -> str:
        """The command line that runs a stage of this run."""
        return COMMAND_LINES[stage].format(run=shlex.quote(str(self.path)))

    def _not_done(self, stage: str, entry: Mapping[str, Any] | None) -> StageError:
        """The error for an unfinished stage, with the command that fixes it."""
        status = entry["status"] if entry else None
        if status == "running" and self.is_locked():
            return StageError(f"{self.path}: the stage {stage} is still running", "wait for it to finish")
        ended = "killed" if status == "running" else status  # killed before it could record its end
        words = f"not finished ({ended})" if ended else "not been run"
        resume = " --resume" if entry and stage == "train" and any(self.checkpoints.glob("checkpoint-*")) else ""
        return StageError(f"{self.path}: the stage {stage} has {words}", f"run first: {self.command_for(stage)}{resume}")

    def changed_path(self, hashes: Mapping[str, str]) -> str | None:
        """The first path whose content no longer matches its recorded hash, or None.

        A missing path does not count: a run moved to another machine still works without its sources.
        """
        for name, sha256 in hashes.items():
            path = self.path / name
            if path.exists() and hash_path(path) != sha256:
                return name
        return None

    @contextmanager
    def stage(
        self, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str], overwrite: bool, resume: bool = False
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
        made = self._make_directory()
        with self.lock():
            previous = self.entry(name)
            if previous and previous["status"] == "done" and not (overwrite or resume):
                raise StageError(f"{self.path}: {name} is already done", "to redo it, add --overwrite")
            entry = {"status": "running", "started": now(), "config": dict(settings), "inputs": dict(inputs)}
            try:
                self._write_entry(name, entry)
                with self._ending_of(name, entry, previous) as record:
                    yield record
            except BaseException:
                self._remove_unless_used(made)
                raise

    @contextmanager
    def _ending_of(self, name: str, entry: dict[str, Any], previous: dict[str, Any] | None) -> Iterator[StageRecord]:
        """Record how a stage ended."""
        record = StageRecord()
        record.save_facts = lambda: self._write_entry(name, {**entry, **record.facts})
        try:
            yield record
            record.facts["outputs"] = {output: hash_path(self.path / output) for output in record.outputs}
            self._write_entry(name, {**entry, **record.facts, "status": "done", "finished": now()})
        except BaseException as error:
            # On a full disk this fails too; the original error matters more.
            with suppress(OSError):
                self._write_entry(name, self._unfinished_entry(entry, record, previous, error))
            raise

    def _make_directory(self) -> list[Path]:
        """Create the run's directory; returns the created directories, innermost first."""
        check_place(self.path)
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        return missing

    def _unfinished_entry(
        self, entry: dict[str, Any], record: StageRecord, previous: dict[str, Any] | None, error: BaseException
    ) -> dict[str, Any]:
        """The entry of an interrupted or failed stage; the previous entry if its outputs are intact."""
        outputs = previous["outputs"] if previous and previous["status"] == "done" else {}
        there = outputs and all((self.path / output).exists() for output in outputs)
        if previous and there and not record.resumable and not self.changed_path(outputs):
            return previous
        status = "interrupted" if isinstance(error, Interrupted) or is_interrupt(error) else "failed"
        return {**entry, **record.facts, "status": status, "finished": now()}

    def _write_entry(self, stage: str, entry: Mapping[str, Any]) -> None:
        new: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "created": now(), "stages": {}}
        ledger = self.ledger() if self.exists() else new
        ledger["stages"][stage] = entry
        ledger["updated"] = now()
        write_atomically(self.ledger_file, json.dumps(ledger, indent=2) + "\n")
        write_atomically(self.config_file, config.dump(settings_of(ledger, "prepare", "train")))

    def _remove_unless_used(self, made: Sequence[Path]) -> None:
        """Delete a new run that has nothing usable in it."""
        stages = self.ledger()["stages"] if self.exists() else {}
        if not made or self.checkpoints.exists() or any(entry["status"] == "done" for entry in stages.values()):
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # another run may have been created in a parent meanwhile
            for folder in made[1:]:
                folder.rmdir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        try:
            held = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            raise StageError(f"another llmft is writing to {self.path}", "wait for it to finish, or stop it") from None
        with held:
            yield

    def is_locked(self) -> bool:
        """Whether a running process is writing to this run."""
        try:
            with self.lock():
                return False
        except StageError:
            return True

    def saved_settings(self, *stages: str) -> dict[str, Any]:
        """The settings of these stages, by name; later stages take precedence."""
        return settings_of(self.ledger(), *stages) if self.exists() else {}


def settings_of(ledger: Mapping[str, Any], *stages: str) -> dict[str, Any]:
    entries = [ledger["stages"].get(stage, {}) for stage in stages]
    return {name: value for entry in entries for name, value in entry.get("config", {}).items()}


def newest(root: Path = RUNS_ROOT) -> RunDir:
    """The run whose ledger was written last.

    Raises:
        StageError: there is no run in `root`.
    """
    runs = [run for run in map(RunDir, root.glob("*")) if run.exists()]
    if not runs:
        raise StageError(f"there is no run under {root}/", "name one, or create one with: llmft prepare DATA")
    return max(runs, key=lambda run: run.ledger().get("updated", ""))
