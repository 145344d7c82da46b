"""The run directory: the only thing that passes between commands, and its ledger `run.json`.

A stage is done only when its ledger entry says so, and that entry is written last and
atomically. Directories appear whole or not at all. A second writer is refused by a lock
that the operating system drops when its holder dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmft_cli import config
from llmft_cli.errors import Interrupted, StageError

SCHEMA_VERSION = 1
RUNS_ROOT = Path("runs")
# What a command needs before it, and the command line that makes it.
NEEDS = {"prepare": None, "train": "prepare", "merge": "train", "eval": "train", "chat": "train"}
MADE_BY = {"prepare": "llmft prepare DATA --run {run}", "train": "llmft train {run}", "merge": "llmft merge {run}"}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it holds either its old content or the whole new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """A fresh directory to fill; it takes the place of `target` when the block ends well, else it is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_path(path: Path) -> str:
    """sha256 of a file, or of a directory's file names and contents."""
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


@dataclass
class StageRecord:
    """What a running stage will leave in the ledger.

    Attributes:
        outputs: paths it made, relative to the run.
        facts: what else there is to record (model, headline numbers, ...).
        resumable: whether what it left behind can be continued after it broke off.
    """

    outputs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    resumable: bool = False


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
            raise StageError(
                f"{self.path} is not a run (it has no run.json)", "make one with: llmft prepare DATA --run RUN"
            ) from None
        except (ValueError, OSError) as error:
            raise StageError(f"{self.ledger_file} cannot be read: {error}") from error
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
            raise StageError(f"{self.ledger_file} is not a ledger of llmft")
        if content.get("schema_version", 0) > SCHEMA_VERSION:
            raise StageError(
                f"{self.ledger_file} was written by a newer llmft (schema {content['schema_version']})", "upgrade llmft"
            )
        return content

    def entry(self, stage: str) -> dict[str, Any] | None:
        """The ledger entry of a stage in whatever status, or None."""
        return self.ledger()["stages"].get(stage) if self.exists() else None

    def is_done(self, stage: str) -> bool:
        entry = self.entry(stage)
        return entry is not None and entry["status"] == "done"

    def require(self, stage: str, allow_stale: bool = False) -> dict[str, Any]:
        """The entry of a finished stage whose inputs and outputs are still what they were.

        Raises:
            StageError: the stage is not done, its outputs are missing or changed, or it is stale.
        """
        entry = self.ledger()["stages"].get(stage)
        command = MADE_BY[stage].format(run=self.path)
        if entry is None or entry["status"] != "done":
            status = "not been run" if entry is None else f"not finished ({entry['status']})"
            hint = command + (" --resume" if stage == "train" and entry is not None else "")
            raise StageError(f"{self.path}: the stage {stage} has {status}", f"first: {hint}")
        for name in entry["outputs"]:
            if not (self.path / name).exists():
                raise StageError(f"{self.path / name} is missing", f"make it again: {command} --overwrite")
        if not allow_stale:
            changed = self.changed_path({**entry["inputs"], **entry["outputs"]})
            if changed:
                hint = f"make it again: {command} --overwrite, or use it as it is with --allow-stale"
                raise StageError(f"{self.path}: the stage {stage} is stale, {changed} has changed since", hint)
            if before := NEEDS[stage]:
                self.require(before)
        return entry

    def changed_path(self, hashes: Mapping[str, str]) -> str | None:
        """The first of some recorded paths whose content is no longer what its hash says, or None.

        A path that is gone is no change: a run moved to another machine still works without its sources.
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
        """Run a stage: hold the lock, and write the ledger entry at its start and, last, at its end.

        Args:
            name: the stage's key in the ledger.
            settings: the settings it uses.
            inputs: sha256 of what it reads, by path (relative to the run, or absolute outside it).
            overwrite: do it again although it is done.
            resume: continue an interrupted one.

        Raises:
            StageError: the stage is done already, or another process writes to this run.
        """
        created = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with self.lock():
                previous = self.entry(name)
                if previous and previous["status"] == "done" and not (overwrite or resume):
                    raise StageError(f"{self.path}: {name} is done already", "to do it again, add --overwrite")
                record = StageRecord()
                entry: dict[str, Any] = {
                    "status": "running",
                    "started": now(),
                    "config": dict(settings),
                    "inputs": dict(inputs),
                }
                self._write_entry(name, entry)
                try:
                    yield record
                    record.facts["outputs"] = {output: hash_path(self.path / output) for output in record.outputs}
                    self._write_entry(name, {**entry, **record.facts, "status": "done", "finished": now()})
                except BaseException as error:
                    # A full disk cannot take this entry either; the error that brought us here matters more.
                    with suppress(OSError):
                        self._write_entry(name, self._unfinished_entry(entry, record, previous, error))
                    raise
        except BaseException:
            if created:
                self._remove_unless_used()
            raise

    def _unfinished_entry(
        self, entry: dict[str, Any], record: StageRecord, previous: dict[str, Any] | None, error: BaseException
    ) -> dict[str, Any]:
        """What the ledger says after a stage broke off: the old entry where its outputs are untouched and still count."""
        untouched = previous and previous["status"] == "done" and not self.changed_path(previous["outputs"])
        if previous and untouched and not record.resumable:
            return previous
        stopped = isinstance(error, KeyboardInterrupt | Interrupted)
        return {**entry, **record.facts, "status": "interrupted" if stopped else "failed", "finished": now()}

    def _write_entry(self, stage: str, entry: Mapping[str, Any]) -> None:
        ledger: dict[str, Any] = self.ledger() if self.exists() else {"schema_version": SCHEMA_VERSION, "created": now(), "stages": {}}
        ledger["stages"][stage] = entry
        ledger["updated"] = now()
        write_atomically(self.ledger_file, json.dumps(ledger, indent=2, ensure_ascii=False) + "\n")
        write_atomically(self.config_file, config.dump(settings_of(ledger, "prepare", "train")))

    def _remove_unless_used(self) -> None:
        """Take a new run away again when nothing in it can be used, so that no husk is left."""
        stages = self.ledger()["stages"] if self.exists() else {}
        if not any(entry["status"] == "done" for entry in stages.values()) and not self.checkpoints.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StageError(f"another llmft is writing to {self.path}", "wait for it to finish, or stop it") from None
            yield

    def saved_settings(self, *stages: str) -> dict[str, Any]:
        """The settings that these stages ran with, by name; later ones win."""
        return settings_of(self.ledger(), *stages) if self.exists() else {}


def settings_of(ledger: Mapping[str, Any], *stages: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for stage in stages:
        settings |= ledger["stages"].get(stage, {}).get("config", {})
    return settings


def newest(root: Path = RUNS_ROOT) -> RunDir:
    """The run whose ledger was written last.

    Raises:
        StageError: there is no run under `root`.
    """
    runs = [RunDir(item) for item in root.iterdir()] if root.is_dir() else []
    runs = [run for run in runs if run.exists()]
    if not runs:
        raise StageError(f"there is no run under {root}/", "name one, or make one with: llmft prepare DATA")
    return max(runs, key=lambda run: run.ledger().get("updated", ""))
