"""The held-out loss before the first step: what every later evaluation is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from llmft_cli.training.loop.trainer import QLoRATrainer


class StartingLoss(TrainerCallback):
    """Measures the held-out loss before the first step, and logs it as step 0.

    A new adapter changes nothing yet (B is 0), so this is the base model's loss; or it is that of the adapter to start
    from. A resumed training has it in its log. It draws no random numbers. It is never the best evaluation, since the
    trainer is not asked whether it is, and early stopping counts from the first best one.
    """

    def __init__(self, trainer: QLoRATrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step > 0 or args.eval_strategy == "no":
            return
        self._trainer.evaluate()
