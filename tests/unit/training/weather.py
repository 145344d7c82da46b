"""A small run that trains in a second, for tests of whole trainings."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llmft_cli.base.reporter import Silent
from llmft_cli.data.prepare import prepare
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import resolve
from llmft_cli.training.judgement.result import TrainResult
from llmft_cli.training.starting_adapter import StartingAdapter
from llmft_cli.training.train import train

FLAGS = {"max_steps": 6, "batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 5e-3, "lora_r": 4, "device": "cpu"}
TOPICS = ["sun", "rain", "wind", "snow", "frost", "mist", "cloud", "storm", "hail", "fog", "heat", "cold", "dew", "ice"]


def write_rows(file: Path, word: str = "then") -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Tell me of {one} and {other}."},
                {"role": "assistant", "content": f"{one} {word} {other}."},
            ]
        }
        for one in TOPICS
        for other in TOPICS[:3]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def prepare_run(run: RunDir, data_file: Path, model_dir: Path, overwrite: bool = False, **flags: Any) -> None:
    config = resolve({"model": str(model_dir), "max_seq_length": 96, "val_size": 6.0, **flags})
    prepare(run, [str(data_file)], config, Silent(), overwrite=overwrite)


def prepared_run(path: Path, data_file: Path, model_dir: Path, **flags: Any) -> RunDir:
    run = RunDir(path)
    prepare_run(run, data_file, model_dir, **flags)
    return run


def train_run(
    run: RunDir,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Silent | None = None,
    start: StartingAdapter | None = None,
    **flags: Any,
) -> TrainResult:
    stages = ("prepare", "train") if resume or (start and start.of_this_run) else ("prepare",)
    config = resolve({**FLAGS, **flags}, saved=run.saved_settings(*stages))
    return train(run, config, reporter or Silent(), resume=resume, overwrite=overwrite, start=start)


def adapter_of(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class InterruptAt(Silent):
    """Asks to stop, as Ctrl-C does, when the held-out loss of a step is told; keeps the warnings."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        if message.startswith(f"step {self.step}:"):
            os.kill(os.getpid(), signal.SIGINT)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
