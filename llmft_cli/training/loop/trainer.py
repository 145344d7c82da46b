"""transformers' Trainer with our loss on held-out rows, our way of saving, and a clock on the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from llmft_cli.base.reporter import Reporter, Silent
from llmft_cli.models.adapters import save_adapter
from llmft_cli.training.batches.sampling import LengthGroupedSampler, TokenBatchSampler
from llmft_cli.training.batches.token_batches import sequence_lengths
from llmft_cli.training.fast.cuda_graphs import recorded_passes
from llmft_cli.training.loop.checkpoints import STATE_FILE, read_state
from llmft_cli.training.loop.deferred_log import LateLog, late_log
from llmft_cli.training.loop.held_out import held_out_loss
from llmft_cli.training.loop.loss_scale import LossScale
from llmft_cli.training.loop.smaller_passes import Failure, Passes, RandomState, random_state, retry_notice, set_random_state
from llmft_cli.training.loop.step_clock import StepClock
from llmft_cli.training.step.loss import loss_and_gradients, summed_loss
from llmft_cli.training.step.tuned_model import base_type

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch


@dataclass
class StepAtHand:
    """What an optimizer step needs to be done over from its beginning.

    Attributes:
        done: optimizer steps before it.
        random_state: at its beginning.
        logged_loss: Trainer's sum of losses that are not logged yet, at its beginning.
        batches: those of it that were given so far.
    """

    done: int
    random_state: RandomState
    logged_loss: torch.Tensor
    batches: list[Batch] = field(default_factory=list)


class QLoRATrainer(transformers.Trainer):
    """Differs from its parent in how the loss is computed, how held-out rows are evaluated, and what is saved.

    And it goes on when memory runs out.

    Attributes:
        step_at_hand: the optimizer step that is under way, or the last one; None before the first.
        passes, evaluation_passes: how much of a batch goes through the model at once.
        tokens_per_batch: tokens that batches are filled with, padding included; None where they have a number of sequences.
        loss_scale: of a model in fp16; None of others, and under autocast, where accelerate has one.
    """

    control: transformers.TrainerControl
    data_collator: Any

    def __init__(
        self,
        group_by_length: bool = False,
        tokens_per_batch: int | None = None,
        reporter: Reporter | None = None,
        **kwargs: Any,
    ) -> None:
        self._group_by_length = group_by_length
        self.tokens_per_batch = tokens_per_batch
        super().__init__(**kwargs)
        self.clock = StepClock(self.args.device)
        self._reporter = reporter or Silent()
        self.step_at_hand: StepAtHand | None = None
        self._logs_late = self.args.device.type == "cuda"
        self._unlogged: LateLog | None = None
        self.passes = Passes(self.args.device, self._tell_of_training)
        self.evaluation_passes = Passes(self.args.device, self._tell_of_evaluation)
        self.loss_scale: LossScale | None = None
        if base_type(self.model) == torch.float16 and not self.args.fp16:
            self.loss_scale = LossScale(self.args.device)
            self.accelerator.scaler = self.loss_scale.scaler
        self._recorded = recorded_passes(self.model, self.args.device, partial(loss_and_gradients, self.model))
        if self._recorded is not None or tokens_per_batch is not None:
            longest = max(sequence_lengths(self.train_dataset))
            self.data_collator = partial(self.data_collator, longest_of_all=longest)
        # Have the step's supervised tokens counted and given to compute_loss, whatever the model's forward takes.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if not self._group_by_length:
            return super()._get_train_sampler(rows)
        rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(sequence_lengths(rows), rows_per_step, self.args.seed)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Batch]:
        """As the parent's, which knows batches of a fixed number of sequences only."""
        if self.tokens_per_batch is None:
            return super().get_train_dataloader()
        loader = torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=TokenBatchSampler(sequence_lengths(self.train_dataset), self.tokens_per_batch, self.args.seed),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward, in smaller passes once memory has run out; returns the batch's share of the loss.

        Raises:
            DoesNotFit: a single row takes too much; nothing of the step is done then.
        """
        if self.step_at_hand is None or self.step_at_hand.done != self.state.global_step:
            self.step_at_hand = StepAtHand(self.state.global_step, random_state(self.args.device), self._tr_loss.clone())
        self.step_at_hand.batches.append(inputs)
        work = partial(self._pass, model, num_items_in_batch=num_items_in_batch)
        loss = self.passes.run(self.step_at_hand.batches, work, start_over=self._start_step_over)
        self.clock.add_tokens(inputs["token_count"])
        return loss

    def _pass(self, model: Any, inputs: Batch, num_items_in_batch: Any) -> torch.Tensor:
        """One forward and backward pass, recorded where it can be; once memory has run out, sizes are too many for that."""
        if self.args.bf16 or self.args.fp16:  # the parent knows autocast and scaled gradients
            return super().training_step(model, inputs, num_items_in_batch)
        if not model.training:
            model.train()
        inputs = self._prepare_inputs(inputs)
        divisor = torch.as_tensor(num_items_in_batch, dtype=torch.float32, device=self.args.device)
        if self.loss_scale is None:
            return self._loss_and_gradients(model, inputs, divisor)
        scale = self.loss_scale.now()
        return self._loss_and_gradients(model, inputs, divisor / scale) / scale

    def _loss_and_gradients(self, model: Any, inputs: Batch, divisor: torch.Tensor) -> torch.Tensor:
        if self._recorded is None or self.passes.largest is not None:
            loss = self.compute_loss(model, inputs, num_items_in_batch=divisor)
            loss.backward()
            return loss.detach()
        loss = self._recorded.run(inputs, divisor)
        if self._recorded.failure is not None:
            self._reporter.note(f"passes are launched one kernel at a time: {self._recorded.failure}")
            self._recorded = None
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        self._unscale()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the gradients as they are without a scale, clipped before or not."""
        if grad_norm is None:
            self._unscale()
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.loss_scale is not None:
            self.loss_scale.count(norm)
        return norm

    def _unscale(self) -> None:
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.optimizer.optimizer)

    def floating_point_ops(self, inputs: Any) -> int:
        """None are counted: nothing shows them, and the parent walks over all weights for it at every batch."""
        return 0

    def _start_step_over(self) -> None:
        assert self.step_at_hand is not None
        self._forget_recordings()
        self.model.zero_grad()
        set_random_state(self.step_at_hand.random_state, self.args.device)

    def _forget_recordings(self) -> None:
        """Give their memory to what comes next."""
        if self._recorded is not None:
            self._recorded.release()

    def pass_through(self, batch: Batch) -> None:
        """Forward and backward of a batch that is no part of a step."""
        work = partial(self._pass, self.model_wrapped, num_items_in_batch=batch["predicting"].numel())
        self.passes.run([batch], work, start_over=self.model.zero_grad)

    def _tell_of_training(self, failure: Failure, largest: int) -> None:
        when = "longest batch" if self.step_at_hand is None else f"step {self.state.global_step + 1}"
        advice = self._smaller_batches(failure.part["input_ids"].shape[1], largest) or "a smaller --max-seq-length"
        self._reporter.warn(retry_notice(when, failure, largest, self.train_dataset, advice))

    def _smaller_batches(self, length: int, largest: int) -> str | None:
        """The flags with which sequences of this length go through in passes of `largest` tokens; None if there are none."""
        if self.tokens_per_batch is not None:
            return f"--tokens-per-batch {largest}" if largest >= max(sequence_lengths(self.train_dataset)) else None
        if largest < length:
            return None
        step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        size = max(count for count in range(1, largest // length + 1) if step % count == 0)
        return f"--batch-size {size} --gradient-accumulation-steps {step // size}"

    def _tell_of_evaluation(self, failure: Failure, largest: int) -> None:
        advice = f"--eval-batch-size {max(1, largest // failure.part['input_ids'].shape[1])}"
        self._reporter.warn(retry_notice("evaluating", failure, largest, self.eval_dataset, advice))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], *args: Any, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The batch's share of the mean loss over the supervised tokens of the whole step."""
        under_autocast = self.args.bf16 or self.args.fp16
        return summed_loss(self.model, inputs, forward=model if under_autocast else None) / num_items_in_batch

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, learning_rate: float | None = None
    ) -> None:
        """As the parent's, but a GPU does not wait for the log of a step after which nothing else is done."""
        control, state = self.control, self.state
        something_else = control.should_evaluate or control.should_save or control.should_training_stop
        if self._unlogged is not None and (state.global_step > self._unlogged.step or something_else):
            self._log_late(self._unlogged)
        if control.should_log and not something_else and self._logs_late:
            self._unlogged = late_log(state.global_step, state.epoch, tr_loss, grad_norm, args, learning_rate)
            control.should_log = False
            return
        logs = control.should_log
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate)
        if logs and self.loss_scale is not None:
            tr_loss.zero_()  # the parent subtracts it from itself, which leaves what is not finite as it is

    def _log_late(self, unlogged: LateLog) -> None:
        """What the parent would have done at the end of the step."""
        self._unlogged = None
        loss, *gradient_norm = unlogged.fetched()
        now, wanted = (self.state.global_step, self.state.epoch), self.control
        self.state.global_step, self.state.epoch = unlogged.step, unlogged.epoch
        self.control = transformers.TrainerControl(should_log=True)
        try:
            super()._maybe_log_save_evaluate(
                loss, gradient_norm[0] if gradient_norm else None, *unlogged.arguments, learning_rate=unlogged.learning_rate
            )
        finally:
            (self.state.global_step, self.state.epoch), self.control = now, wanted

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss per supervised token. The parent averages batches' means, and draws random numbers for its data loader."""
        with self.clock.paused():
            self._forget_recordings()
            batch_size, device = self.args.per_device_eval_batch_size, self.args.device
            result = held_out_loss(self.model, self.eval_dataset, batch_size, device, self.evaluation_passes)
        metrics = {"eval_loss": result.loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.clock.paused():
            super()._save_checkpoint(*args, **kwargs)

    def save_completed_steps(self) -> None:
        """A checkpoint of the last completed step, after something broke off; none before the first, or where there is one."""
        done = self.state.global_step
        if done == 0 or read_state(Path(str(self.args.output_dir)) / f"checkpoint-{done}") is not None:
            return
        if self.step_at_hand is not None and self.step_at_hand.done == done:
            self._start_step_over()
            self._tr_loss = self.step_at_hand.logged_loss
        self.control.should_log = self.control.should_save = True
        self.control.should_evaluate = False
        self._maybe_log_save_evaluate(self._tr_loss, None, self.model, None, self.state.epoch, None, 0.0)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Only the adapter: the parent asks the Hub about the base at each save, and pickles its arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(self.model, folder)

    def restore_end(self, checkpoint: Path) -> None:
        """Take up the end of a training from its last step's checkpoint; the parent's `train` would add a step."""
        self.state = transformers.TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self.model.load_adapter(best or str(checkpoint), "default", is_trainable=True)

    def mean_loss(self) -> float:
        """Training loss over all steps, those before a resumption included, and those without a finite one (fp16) left out."""
        total, counted, last = 0.0, 0, 0
        for row in self.state.log_history:
            if "loss" in row:
                if math.isfinite(row["loss"]):
                    total += row["loss"] * (row["step"] - last)
                    counted += row["step"] - last
                last = row["step"]
        return total / counted if counted else math.nan

    def final_eval_loss(self) -> float | None:
        """Held-out loss of the weights that training ended with, or None where nothing was evaluated."""
        if self.args.load_best_model_at_end:
            return self.state.best_metric
        losses: list[float] = [row["eval_loss"] for row in self.state.log_history if "eval_loss" in row]
        return losses[-1] if losses else None
