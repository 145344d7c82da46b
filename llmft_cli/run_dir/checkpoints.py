"""Checkpoints in a run: which training each belongs to, and whether its files are intact.

Trainer writes the files of `checkpoint-N/`. A seal, written last, records the identity of the training and the sha256
of every file, so that a checkpoint without a seal is incomplete, and damage is found before the checkpoint is used.
Folders with other names are not ours and are left alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmft_cli.base.files import hash_file, write_atomically

SEAL_FILE = "llmft_seal.json"
STATE_FILE = "trainer_state.json"  # Trainer's name
NAME = re.compile(r"checkpoint-(\d+)")

# What a training is: its id, and hashes of all that shapes its result. Two trainings never share an id.
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Seal:
    """What is known of a complete checkpoint.

    Attributes:
        training: the identity of the training that wrote it.
        best_step: the step of the best checkpoint so far, without which this one cannot be resumed; None if not kept.
        files: sha256 by name.
    """

    training: Identity
    best_step: int | None
    files: dict[str, str]


def checkpoint_of(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, without folders that only have a similar name."""
    named = [item for item in folder.glob("checkpoint-*") if NAME.fullmatch(item.name) and item.is_dir()]
    return sorted(named, key=step_of, reverse=True)


def seal(checkpoint: Path, training: Identity, best_step: int | None) -> None:
    """Declare a checkpoint complete."""
    files = {file.name: hash_file(file) for file in sorted(checkpoint.iterdir()) if file.name != SEAL_FILE}
    content = asdict(Seal(dict(training), best_step, files))
    write_atomically(checkpoint / SEAL_FILE, json.dumps(content, indent=2) + "\n")


def read_seal(checkpoint: Path) -> Seal | None:
    """The seal of a checkpoint, or None if it is incomplete or its seal is damaged."""
    try:
        found = Seal(**json.loads((checkpoint / SEAL_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if isinstance(found.training, dict) and isinstance(found.files, dict) else None


def is_sealed(checkpoint: Path) -> bool:
    return read_seal(checkpoint) is not None


def of_training(folder: Path, training_id: str | None) -> list[Path]:
    """The complete checkpoints of a training by its id, the newest first; their files are not verified."""
    seals = {checkpoint: read_seal(checkpoint) for checkpoint in newest_first(folder)}
    return [checkpoint for checkpoint, found in seals.items() if found and found.training.get("id") == training_id]


def damage_of(checkpoint: Path, training: Identity) -> str | None:
    """Why a checkpoint is not as this training wrote it, or None if it is."""
    found = read_seal(checkpoint)
    if found is None:
        return f"{checkpoint} is incomplete or missing"
    if found.training != training:
        return f"{checkpoint} belongs to another training"
    for name, sha256 in found.files.items():
        file = checkpoint / name
        try:
            if hash_file(file) != sha256:
                return f"{file} is damaged"
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
    return None


def why_not_resumable(checkpoint: Path, training: Identity) -> str | None:
    """Why a training cannot be resumed from a checkpoint: damage to it or to the best one before it. None if it can."""
    damage, found = damage_of(checkpoint, training), read_seal(checkpoint)
    if damage or found is None or found.best_step is None:
        return damage
    return damage_of(checkpoint_of(checkpoint.parent, found.best_step), training)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; without its seal first, so that what a kill leaves counts as incomplete."""
    (checkpoint / SEAL_FILE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def remove_surplus(folder: Path, limit: int | None, best_step: int | None) -> None:
    """Keep the newest checkpoint, the best one, and further newest ones up to `limit` in all; None keeps all."""
    if limit is None:
        return
    newest, *others = newest_first(folder)
    ranked = [newest, *sorted(others, key=lambda checkpoint: step_of(checkpoint) != best_step)]
    needed = 1 + any(step_of(checkpoint) == best_step for checkpoint in others)
    for checkpoint in ranked[max(limit, needed) :]:
        remove(checkpoint)
