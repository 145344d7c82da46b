"""What each stage leaves in a run, and reading it: a missing or damaged file is named, with the command that recreates it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmft_cli.base.errors import DataError, ModelError, StageError
from llmft_cli.base.file_checks import DamagedFile, reading_foreign
from llmft_cli.run_dir.run import RunDir

# By name in the run's directory: the stage that writes it.
WRITTEN_BY = {
    "config.yaml": "prepare",
    "data": "prepare",
    "tokenizer": "prepare",
    "checkpoints": "train",
    "adapter": "train",
    "metrics.jsonl": "train",
    "loss.svg": "train",
    "profile": "train",
    "merged": "merge",
    "eval": "eval",
}
# What no command can recreate: the ledger, conversations, earlier adapters, and files of trackers.
NOT_RECREATED = ("run.json", "chat", "earlier", "wandb", "tensorboard", "mlflow", "trackio")


@contextmanager
def reading(run: RunDir, path: Path) -> Iterator[None]:
    """Take errors of reading a file or folder of the run as damage of it.

    Raises:
        StageError: it is missing or damaged; the hint is the command that recreates it.
    """
    try:
        with reading_foreign(path):
            yield
    except (ModelError, DataError) as error:
        raise StageError(error.message, command_to_recreate(run, path), error.details) from error
    except DamagedFile as error:
        raise StageError(str(error), command_to_recreate(run, path)) from error


def command_to_recreate(run: RunDir, path: Path) -> str:
    """The hint for a damaged file or folder of the run."""
    stage = WRITTEN_BY[path.relative_to(run.path).parts[0]]
    return f"recreate it: {run.command_for(stage)} --overwrite"


def refuse_foreign(run: RunDir) -> None:
    """Refuse to make a run of a directory that holds other things under the names of a run: they would be replaced.

    Raises:
        StageError: it is no run, and has something under such a name.
    """
    if run.exists():
        return
    there = [name for name in WRITTEN_BY if (run.path / name).exists()]
    if there:
        raise StageError(
            f"{run.path} is not a run, and preparing would replace its {', '.join(there)}",
            f"name another directory: llmft prepare DATA --run {shlex.quote(str(run.path / 'run'))}",
        )
