"""The files that a training writes as it goes: in its run, or in the folder of one of several trainings of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingFiles:
    """The paths of a training's checkpoints and figures."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def loss_chart(self) -> Path:
        return self.folder / "loss.svg"
