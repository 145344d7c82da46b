"""The figures of a training that its advice is drawn from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.base.errors import StageError
from llmft_cli.data.report.summary import read_result
from llmft_cli.data.store import REPORT_FILE
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import Config
from llmft_cli.training.judgement.curve import Curve, curve_of

if TYPE_CHECKING:
    from llmft_cli.training.batches.sequences import Sequences
    from llmft_cli.training.loop.trainer import QLoRATrainer

RUN_INPUTS = ("data", "tokenizer")  # what every training reads; the rest is the adapter to start from


@dataclass(frozen=True)
class Facts:
    """What is known of a training at its end.

    Attributes:
        run: the path of the run.
        steps: optimizer steps taken.
        planned_steps: those of the whole schedule; early stopping takes fewer.
        num_epochs: passes over the rows in the whole schedule; None if `max_steps` was given.
        held_out_rows, held_out_tokens: rows held out, and their supervised tokens.
        kept_step: the step of the evaluation whose adapter is kept; None if it is the last step's.
        starting_adapter: the path of the adapter that the training began with; None for a new one.
        training_rows: rows to learn from; 0 if unknown.
        truncated_rows, lost_ends: rows that were cut (`--on-overlength truncate`), and ends of turn lost with that.
    """

    run: Path
    curve: Curve
    steps: int
    planned_steps: int
    num_epochs: float | None
    learning_rate: float
    held_out_rows: int
    held_out_tokens: int
    kept_step: int | None
    starting_adapter: Path | None = None
    training_rows: int = 0
    truncated_rows: int = 0
    lost_ends: int = 0

    @property
    def start_name(self) -> str:
        """What the training began with, by name."""
        return "the base" if self.starting_adapter is None else "the adapter it began with"

    @property
    def train_again(self) -> str:
        """The beginning of the command that trains anew from where this training began."""
        start = "" if self.starting_adapter is None else f" --from-adapter {shlex.quote(str(self.starting_adapter))}"
        return f"llmft train {shlex.quote(str(self.run))} --overwrite{start}"

    def length_flag(self, share: float) -> str:
        """The flag for a schedule of this share of the steps of this one: 2 is twice as long."""
        if self.num_epochs is None:
            return f"--max-steps {max(1, round(share * self.planned_steps))}"
        return f"--num-epochs {max(0.1, round(share * self.num_epochs, 1)):g}"


def facts_of(run: RunDir, trainer: QLoRATrainer, config: Config, inputs: Mapping[str, str]) -> Facts:
    """The facts of a finished training; `inputs` is what the ledger records as read by it."""
    start = next((name for name in inputs if name not in RUN_INPUTS), None)
    rows, tokens = (0, 0) if trainer.eval_dataset is None else size_of(trainer.eval_dataset)
    return Facts(
        run=run.path,
        curve=curve_of(trainer.state.log_history),
        steps=trainer.state.global_step,
        planned_steps=trainer.args.max_steps,
        num_epochs=config.num_epochs if config.max_steps is None else None,
        learning_rate=config.learning_rate,
        held_out_rows=rows,
        held_out_tokens=tokens,
        kept_step=trainer.kept_evaluation,
        starting_adapter=run.path / start if start else None,
        **facts_of_data(run),
    )


def size_of(split: Sequences) -> tuple[int, int]:
    """The rows of a split, and their supervised tokens."""
    return len(split.rows), int(split.rows.supervised.sum())


def facts_of_data(run: RunDir) -> dict[str, int]:
    """What the report of `prepare` knows; nothing if it was damaged meanwhile, which must not cost the training."""
    try:
        report = read_result(run.data / REPORT_FILE)
    except StageError:
        return {}
    facts, lost = {"training_rows": report.splits["train"]}, report.overlength
    if lost.get("policy") == "truncate":
        facts |= {"truncated_rows": lost["rows"] - lost["dropped"], "lost_ends": lost["end_of_turns_lost"]}
    return facts
