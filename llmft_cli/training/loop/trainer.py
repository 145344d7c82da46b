"""transformers' Trainer with our own loss, evaluation, checkpoints, speed measurement and out-of-memory handling."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from llmft_cli.base.errors import StageError
from llmft_cli.base.reporter import Reporter, Silent
from llmft_cli.base.stage_times import StageTimes
from llmft_cli.models.adapters import save_adapter
from llmft_cli.run_dir import checkpoints
from llmft_cli.training.batches.sampling import TokenBatchSampler, loader_of, sampler_of
from llmft_cli.training.batches.token_batches import smaller_batches
from llmft_cli.training.fast.cuda_graphs import recorded_passes
from llmft_cli.training.judgement.curve import step_to_keep
from llmft_cli.training.loop.deferred_log import DeferredLog, defer_log
from llmft_cli.training.loop.held_out import evaluation_of
from llmft_cli.training.loop.loss_scale import LossScale
from llmft_cli.training.loop.schedule import rates
from llmft_cli.training.loop.smaller_passes import CurrentStep, Failure, Passes, random_state, retry_notice, set_random_state
from llmft_cli.training.loop.step_clock import StepClock
from llmft_cli.training.step.loss import clear_gradients, loss_and_gradients, summed_loss
from llmft_cli.training.step.tuned_model import base_type

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch


class QLoRATrainer(transformers.Trainer):
    """Differs from its parent in how it computes the loss, evaluates, and saves, and continues when memory runs out.

    Attributes:
        current_step: the optimizer step in progress, or the last one; None before the first.
        passes: run batches through the model, in parts if needed.
        tokens_per_batch: tokens per batch, padding included; None if batches have a fixed number of sequences.
        trained_weights: those of the adapter, in the model's order.
        loss_scale: for fp16 without autocast; else None (under autocast, accelerate has its own).
        times: of the process by stage.
        evaluation: of the held-out rows; None if there are none.
        keeps_best: whether the adapter of the best evaluation is kept if it beats the loss before training.
    """

    control: transformers.TrainerControl
    lr_scheduler: Any
    data_collator: Any

    def __init__(
        self,
        group_by_length: bool = False,
        tokens_per_batch: int | None = None,
        reporter: Reporter | None = None,
        training: checkpoints.Identity | None = None,
        checkpoints_kept: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._group_by_length = group_by_length
        self.tokens_per_batch = tokens_per_batch
        self._training = training or {}
        self._checkpoints_kept = checkpoints_kept
        super().__init__(**kwargs)
        self.keeps_best: bool = self.args.load_best_model_at_end
        self.trained_weights = [weights for weights in self.model.parameters() if weights.requires_grad]
        # After each step, the parent clears all gradients of the model: for a small one, that took longer than its backward.
        self.model.zero_grad = partial(clear_gradients, self.trained_weights)
        self.clock = StepClock(self.args.device)
        self.times = StageTimes("steps")
        self._reporter = reporter or Silent()
        self.current_step: CurrentStep | None = None
        self._defers_logs = self.args.device.type == "cuda"
        self._deferred_log: DeferredLog | None = None
        self.passes = Passes(self.args.device, self._report_training)
        self.loss_scale: LossScale | None = None
        if base_type(self.model) == torch.float16 and not self.args.fp16:
            self.loss_scale = LossScale(self.args.device)
            self.accelerator.scaler = self.loss_scale.scaler
        self._recorded = recorded_passes(self.model, self.args.device, partial(loss_and_gradients, self.model))
        self.evaluation = evaluation_of(self, tokens_per_batch, self._recorded, self._reporter)
        if self._recorded is not None or tokens_per_batch is not None:
            self.data_collator = partial(self.data_collator, longest_of_all=int(self.train_dataset.lengths.max()))
        # Makes Trainer count the step's supervised tokens and pass them to compute_loss, whatever the model's forward takes.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return sampler_of(self.train_dataset, per_step if self._group_by_length else None, self.args.seed)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Batch]:
        """Like the parent's, which supports only batches of a fixed number of sequences."""
        if self.tokens_per_batch is None:
            return super().get_train_dataloader()
        batches = TokenBatchSampler(self.train_dataset, self.tokens_per_batch, self.args.seed)
        return self.accelerator.prepare(loader_of(self.train_dataset, batches, self.data_collator, self.args))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Like the parent's, without a step whose rate is 0."""
        if self.lr_scheduler is None:
            self.lr_scheduler = rates(self.args, optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward, in smaller passes once memory has run out; returns the batch's share of the loss.

        Raises:
            DoesNotFit: a single row needs too much memory; the step is undone.
        """
        if self.current_step is None or self.current_step.done != self.state.global_step:
            self.current_step = CurrentStep(self.state.global_step, random_state(self.args.device), self._tr_loss.clone())
        self.current_step.batches.append(inputs)
        work = partial(self._pass, model, num_items_in_batch=num_items_in_batch)
        loss = self.passes.run(self.current_step.batches, work, start_over=self._start_step_over)
        self.clock.add_tokens(inputs["token_count"])
        return loss

    def _pass(self, model: Any, inputs: Batch, num_items_in_batch: Any) -> torch.Tensor:
        """One forward and backward pass, as a CUDA graph if possible."""
        if self.args.bf16 or self.args.fp16:  # the parent handles autocast and loss scaling
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
            self._reporter.note(f"continuing without CUDA graphs: {self._recorded.failure}")
            self._recorded = None
        return loss

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """Like the parent's, which walks through all modules of the model."""
        self._unscale()
        self.accelerator.unscale_gradients()
        return torch.nn.utils.clip_grad_norm_(self.trained_weights, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the unscaled gradients, clipped before or not."""
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
        """Not counted: nothing shows them, and the parent would iterate over all weights for each batch."""
        return 0

    def _start_step_over(self) -> None:
        assert self.current_step is not None
        self._forget_recordings()
        self.model.zero_grad()
        set_random_state(self.current_step.random_state, self.args.device)

    def _forget_recordings(self) -> None:
        """Free the memory of the CUDA graphs."""
        if self.evaluation is not None:
            self.evaluation.forget_recordings()
        if self._recorded is not None:
            self._recorded.release()

    def pass_through(self, batch: Batch) -> None:
        """Forward and backward of a batch outside any step."""
        work = partial(self._pass, self.model_wrapped, num_items_in_batch=batch["predicting"].numel())
        self.passes.run([batch], work, start_over=self.model.zero_grad)

    def _report_training(self, failure: Failure, largest: int) -> None:
        when = "longest batch" if self.current_step is None else f"step {self.state.global_step + 1}"
        length, limit = failure.part["input_ids"].shape[1], self.tokens_per_batch
        advice = smaller_batches(self.args, limit, self.train_dataset, length, largest) or "a smaller --max-seq-length"
        self._reporter.warn(retry_notice(when, failure, largest, self.train_dataset.rows, advice))

    def compute_loss(self, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        """The batch's share of the mean loss over the supervised tokens of the whole step."""
        under_autocast = self.args.bf16 or self.args.fp16
        return summed_loss(self.model, inputs, forward=model if under_autocast else None) / num_items_in_batch

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, learning_rate: float | None = None
    ) -> None:
        """Like the parent's, but on a GPU, the log of a step is deferred unless an evaluation or checkpoint follows it."""
        control, state = self.control, self.state
        something_else = control.should_evaluate or control.should_save or control.should_training_stop
        if self._deferred_log is not None and (state.global_step > self._deferred_log.step or something_else):
            self._write_deferred_log(self._deferred_log)
        if control.should_log and not something_else and self._defers_logs:
            self._deferred_log = defer_log(state.global_step, state.epoch, tr_loss, grad_norm, args, learning_rate)
            control.should_log = False
            return
        logs = control.should_log
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate)
        if logs and self.loss_scale is not None:
            tr_loss.zero_()  # the parent subtracts it from itself, which does not reset a non-finite loss

    def _write_deferred_log(self, deferred: DeferredLog) -> None:
        """Do what the parent would have done at the end of the step."""
        self._deferred_log = None
        loss, *gradient_norm = deferred.fetched()
        now, wanted = (self.state.global_step, self.state.epoch), self.control
        self.state.global_step, self.state.epoch = deferred.step, deferred.epoch
        self.control = transformers.TrainerControl(should_log=True)
        try:
            super()._maybe_log_save_evaluate(
                loss, gradient_norm[0] if gradient_norm else None, *deferred.arguments, learning_rate=deferred.learning_rate
            )
        finally:
            (self.state.global_step, self.state.epoch), self.control = now, wanted

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss per supervised token. The parent would average the batches' means, and draw random numbers."""
        metrics = {"eval_loss": self.held_out_loss()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def held_out_loss(self) -> float:
        """The held-out loss of the adapter as it is; the training does not know of it."""
        assert self.evaluation is not None
        with self.clock.paused(), self.times.during("evaluations"):
            if not self.evaluation.is_recorded:
                self._forget_recordings()
            return self.evaluation.run().loss

    @property
    def _checkpoint_folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Like the parent's, which neither knows when all files are written nor leaves folders of others alone."""
        with self.clock.paused(), self.times.during("saves"):
            super()._save_checkpoint(*args, **kwargs)
            best_step = self.state.best_global_step if self.keeps_best else None
            written = checkpoints.checkpoint_of(self._checkpoint_folder, self.state.global_step)
            checkpoints.seal(written, self._training, best_step)
            checkpoints.remove_surplus(self._checkpoint_folder, self._checkpoints_kept, best_step)

    def save_completed_steps(self) -> None:
        """Save a checkpoint of the last completed step after a failure, unless there is none or it is already saved."""
        done = self.state.global_step
        if done == 0 or checkpoints.is_sealed(checkpoints.checkpoint_of(self._checkpoint_folder, done)):
            return
        if self.current_step is not None and self.current_step.done == done:
            self._start_step_over()
            self._tr_loss = self.current_step.logged_loss
        self.control.should_log = self.control.should_save = True
        self.control.should_evaluate = False
        self._maybe_log_save_evaluate(self._tr_loss, None, self.model, None, self.state.epoch, None, 0.0)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save only the adapter: the parent would query the Hub for the base at each save, and pickle its arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(self.model, folder)

    def restore_end(self, checkpoint: Path) -> None:
        """Restore the end of a training run from its last step's checkpoint; the parent's `train` would add a step."""
        self.state = transformers.TrainerState.load_from_json(str(checkpoint / checkpoints.STATE_FILE))
        self._load_best_model()

    def _load_best_model(self) -> None:
        """Load the adapter to keep. The parent would go on with another one, in silence, if its files are missing.

        Raises:
            StageError: its checkpoint is damaged.
        """
        kept = self.kept_checkpoint()
        if damage := checkpoints.damage_of(kept, self._training):
            raise StageError(
                f"the adapter to keep cannot be loaded: {damage}",
                f"train again from an intact checkpoint: llmft train {kept.parent.parent} --resume",
            )
        self.model.load_adapter(str(kept), "default", is_trainable=True)

    @property
    def kept_evaluation(self) -> int | None:
        """The step of the evaluation whose adapter is kept; None if that of the last step is."""
        return step_to_keep(self.state) if self.keeps_best else None

    def kept_checkpoint(self) -> Path:
        """The checkpoint whose adapter is kept: that of the best evaluation, or of the last step."""
        return checkpoints.checkpoint_of(self._checkpoint_folder, self.kept_evaluation or self.state.global_step)
