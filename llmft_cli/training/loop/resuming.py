"""What Trainer forgets when it resumes: its end, the evaluations without a lower loss, and the evaluation of a stopped step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmft_cli.run_dir.checkpoints import STATE_FILE, step_of

if TYPE_CHECKING:
    from llmft_cli.training.loop.trainer import QLoRATrainer

COUNTER = "early_stopping_patience_counter"


class AlreadyStopped(Exception):
    """Early stopping ended the training at the checkpoint that it is resumed from."""


def train_after(checkpoint: Path | None, trainer: QLoRATrainer, pause_after: int | None = None) -> None:
    """Train after the checkpoint, until the end or the step to pause after.

    If the checkpoint is there already, by its step or by early stopping, the end or the pause is restored.
    """
    if checkpoint and step_of(checkpoint) >= trainer.args.max_steps:
        trainer.restore_end(checkpoint)
        return
    if checkpoint and pause_after is not None and step_of(checkpoint) >= pause_after:
        trainer.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        trainer.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except AlreadyStopped:
        trainer._load_best_model()


class Patience(EarlyStoppingCallback):
    """Early stopping that counts on where the checkpoint left off.

    Trainer could restore the state of all callbacks, but then also that of its control, with the request to stop. It would
    take a step before it stops where patience is used up.

    Raises:
        AlreadyStopped: it is.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved = (state.stateful_callbacks or {}).get(type(self).__name__, {})
        self.early_stopping_patience_counter = saved.get("attributes", {}).get(COUNTER, 0)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            raise AlreadyStopped


class DueEvaluation(TrainerCallback):
    """Evaluates a checkpoint that was saved on request at a step whose evaluation was due.

    A request to stop must not wait for an evaluation, but without it another checkpoint may turn out the best.

    Raises:
        AlreadyStopped: with this evaluation, patience is used up.
    """

    def __init__(self, trainer: QLoRATrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if args.eval_strategy == "no" or step == 0 or step % int(args.eval_steps or 1):
            return
        if any(row["step"] == step and "eval_loss" in row for row in state.log_history):
            return
        metrics = self._trainer.evaluate()
        self._trainer._determine_best_metric(metrics, None)
        if self._trainer.control.should_training_stop:
            raise AlreadyStopped
