"""Training of the tiny model in fp32, where rounding cannot hide a wrong loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from llmft_cli.base.reporter import Silent
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models import loading, model_source
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.loop.trainer import QLoRATrainer

from .made_sequences import sequences_of

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Told(Silent):
    """Keeps what the user would read."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def note(self, message: str) -> None:
        self.notes.append(message)


def sequences(count: int, packing: bool) -> Sequences:
    """Random sequences of three rows each, or of one row; the first half of each row is not supervised."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        lengths = torch.randint(6, 30, (3 if packing else 1,), generator=generator).tolist()
        ids = torch.randint(10, 300, (sum(lengths),), generator=generator).tolist()
        labels = [IGNORED if place < length // 2 else 0 for length in lengths for place in range(length)]
        labels = [token if label == 0 else label for token, label in zip(ids, labels, strict=True)]
        made.append({"input_ids": ids, "labels": labels, "row_lengths": lengths})
    return sequences_of(made)


def make_trainer(
    model_dir: Path,
    folder: Path,
    *,
    packing: bool = True,
    tokens_per_batch: int | None = None,
    dropout: float = 0.0,
    reporter: Silent | None = None,
    **arguments: Any,
) -> QLoRATrainer:
    """A trainer of 3 steps of 2 x 4 sequences, unless `arguments` (Trainer's) say otherwise."""
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    options |= {"save_strategy": "no", "logging_steps": 1, "max_grad_norm": 0.3, "per_device_eval_batch_size": 4}
    base = loading.load_base(model_source.resolve(str(model_dir), Silent()), torch.device("cpu"), dtype=torch.float32)
    transformers.set_seed(1)
    return QLoRATrainer(
        group_by_length=not packing,
        tokens_per_batch=tokens_per_batch,
        reporter=reporter,
        model=add_adapter(base, resolve({"lora_r": 4, "lora_dropout": dropout}), "tiny"),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            log_level="error",
            seed=1,
            **(options | arguments),
        ),
        train_dataset=sequences(30, packing),
        eval_dataset=sequences(9, packing),
        data_collator=collate,
    )


def losses(trainer: QLoRATrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def gradient_norms(trainer: QLoRATrainer) -> list[float]:
    return [float(row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]


def adapter(trainer: QLoRATrainer) -> dict[str, torch.Tensor]:
    return {name: weights.detach().clone() for name, weights in trainer.model.named_parameters() if weights.requires_grad}
