"""The paths of a run, what is done in it, and its lock.

Directories appear complete or not at all. The lock keeps out a second writer; the operating system releases it if its
holder dies.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmft_cli.base.errors import MachineError, StageError
from llmft_cli.base.files import hash_path, put_back
from llmft_cli.base.reporter import Reporter, Silent
from llmft_cli.run_dir.checkpoints import of_training
from llmft_cli.run_dir.ledger import entries_before, read_ledger, settings_of
from llmft_cli.run_dir.training_files import TrainingFiles

RUNS_ROOT = Path("runs")
# The stage that each command needs, and the command that runs each stage.
NEEDS = {"prepare": None, "train": "prepare", "merge": "train", "eval": "train", "chat": "train"}
COMMAND_LINES = {"prepare": "llmft prepare DATA --run {run}", "train": "llmft train {run}", "merge": "llmft merge {run}"}
COMMAND_LINES |= {"eval": "llmft eval {run}"}
SILENT = Silent()


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
    def training_files(self) -> TrainingFiles:
        return TrainingFiles(self.path)

    @property
    def checkpoints(self) -> Path:
        return self.training_files.checkpoints

    @property
    def search(self) -> Path:
        return self.path / "search"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def metrics(self) -> Path:
        return self.training_files.metrics

    @property
    def loss_chart(self) -> Path:
        return self.training_files.loss_chart

    @property
    def merged(self) -> Path:
        return self.path / "merged"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def earlier(self) -> Path:
        return self.path / "earlier"

    @property
    def transcripts(self) -> Path:
        return self.path / "chat"

    def exists(self) -> bool:
        return self.ledger_file.is_file()

    def ledger(self) -> dict[str, Any]:
        """The ledger's content; raises StageError as `read_ledger`."""
        return read_ledger(self.ledger_file)

    def entries(self, *, locked_here: bool = False) -> dict[str, dict[str, Any]]:
        """The ledger entries of all stages, by name.

        A redo that was killed before it changed anything counts as not begun: its entry is the one before.

        Args:
            locked_here: whether this process holds the run's lock.
        """
        entries = self.ledger()["stages"]
        before = entries_before(entries)
        if before and not locked_here:
            try:
                with self.lock(), suppress(OSError):  # on a disk that cannot be written, stages may be stale
                    self.put_back_outputs()
            except StageError:
                return entries
        return entries | before

    def put_back_outputs(self) -> None:
        """Put back the outputs that running redos have replaced; they failed or were killed. The caller holds the lock."""
        for entry in entries_before(self.ledger()["stages"]).values():
            for output in entry.get("outputs", ()):
                put_back(self.path / output)

    def entry(self, stage: str, *, locked_here: bool = False) -> dict[str, Any] | None:
        """The ledger entry of a stage in any status, or None; see `entries`."""
        return self.entries(locked_here=locked_here).get(stage) if self.exists() else None

    def is_done(self, stage: str) -> bool:
        entry = self.entry(stage)
        return entry is not None and entry["status"] == "done"

    def require(self, stage: str, allow_stale: bool = False) -> dict[str, Any]:
        """The entry of a finished stage with unchanged inputs and outputs.

        Raises:
            StageError: the stage is not done, its outputs are missing or changed, or it is stale.
        """
        entry = self.entries().get(stage)
        if entry is None or entry["status"] != "done":
            raise self._not_done(stage, entry)
        if not allow_stale:
            self._check_unchanged(stage, entry)
            if before := NEEDS[stage]:
                self.require(before)
        return entry

    def _check_unchanged(self, stage: str, entry: Mapping[str, Any]) -> None:
        """Raises StageError if an output of a finished stage is missing or has changed, or an input has changed."""
        again = f"recreate it: {self.command_for(stage)} --overwrite"
        for name in entry["outputs"]:
            if not (self.path / name).exists():
                raise StageError(f"{self.path / name} is missing", again)
        if changed := self.changed_path({**entry["inputs"], **entry["outputs"]}):
            stale = f"{self.path}: the stage {stage} is stale: {changed} has changed since"
            raise StageError(stale, f"{again}; or use it as it is: train, merge, eval and chat take --allow-stale")

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
        go_on = self.flag_to_go_on(entry) if entry and stage == "train" else ""
        return StageError(f"{self.path}: the stage {stage} has {words}", f"run first: {self.command_for(stage)}{go_on}")

    def flag_to_go_on(self, entry: Mapping[str, Any]) -> str:
        """The flag, with a space before it, with which an unfinished training is begun again; empty if none is needed."""
        if self.resumable_checkpoints(entry):
            return " --overwrite" if self.changed_path(entry["inputs"]) else " --resume"
        if asked := entry.get("search"):
            return f" --search {asked['recipes']} --search-metric {asked['metric']}"
        return " --continue" if self.adapter_to_continue(entry) else ""

    def adapter_to_continue(self, entry: Mapping[str, Any]) -> str | None:
        """The adapter that `train --continue` has set aside, if it stopped before its first checkpoint; else None."""
        if entry["status"] == "done" or self.resumable_checkpoints(entry):
            return None
        return next((name for name in entry["inputs"] if name.startswith("earlier/")), None)

    def resumable_checkpoints(self, entry: Mapping[str, Any]) -> list[Path]:
        """The complete checkpoints of the training that a ledger entry records, the newest first; then those of its search."""
        folders = [self.checkpoints, *sorted(TrainingFiles(folder).checkpoints for folder in self.search.glob("*"))]
        training_id = entry.get("training", {}).get("id", "")
        return [checkpoint for folder in folders for checkpoint in of_training(folder, training_id)]

    def lost_output(self, entry: Mapping[str, Any]) -> str | None:
        """The first output of a finished stage that is missing or has changed, or None."""
        missing = (name for name in entry["outputs"] if not (self.path / name).exists())
        return next(missing, None) or self.changed_path(entry["outputs"])

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
        return settings_of(self.entries(), *stages) if self.exists() else {}


def newest(root: Path = RUNS_ROOT, reporter: Reporter = SILENT) -> RunDir:
    """The run whose ledger was written last; those with a damaged ledger are named and left out.

    Raises:
        StageError: there is no run in `root`.
    """
    written: dict[str, RunDir] = {}
    for run in map(RunDir, sorted(root.glob("*"))):
        try:
            if run.exists():
                written[run.ledger().get("updated", "")] = run
        except (StageError, MachineError) as error:
            reporter.warn(f"left out: {error}")
    if not written:
        raise StageError(f"there is no run under {root}/", "name one, or create one with: llmft prepare DATA")
    return written[max(written)]
