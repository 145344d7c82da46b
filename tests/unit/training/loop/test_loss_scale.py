"""Training in fp16 without autocast: gradients are scaled and come out unscaled, and a step that overflows does no harm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from llmft_cli.base.errors import VerificationError
from llmft_cli.base.reporter import Silent
from llmft_cli.models import loading, model_source
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.fast.architectures import blocks_of
from llmft_cli.training.judgement.result import mean_loss
from llmft_cli.training.loop import loss_chart
from llmft_cli.training.loop.callbacks import Figures
from llmft_cli.training.loop.loss_scale import LossScale
from llmft_cli.training.loop.step_clock import StepClock
from llmft_cli.training.loop.trainer import QLoRATrainer
from llmft_cli.training.step.tuned_model import make_trainable

from ..tiny_training import Told, adapter, gradient_norms, losses, sequences

CPU = torch.device("cpu")
LAYERS = {"fast layers": True, "plain layers": False}
BEGUN = 2.0**16


@pytest.fixture
def trainer_in(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., QLoRATrainer]:
    """Make a trainer of the tiny model in a type, of 3 steps of 2 x 2 sequences unless Trainer's `arguments` say otherwise."""

    def make(dtype: torch.dtype, fast: bool = True, folder: str = "run", count: int = 30, **arguments: Any) -> QLoRATrainer:
        options = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
        options |= {"save_strategy": "no", "logging_steps": 1, "max_grad_norm": 0.3, "optim": "adamw_torch_fused"}
        base = loading.load_base(model_source.resolve(str(tiny_model_dir), Silent()), CPU, dtype)
        transformers.set_seed(1)
        quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "log_level": "error", "seed": 1}
        taken = {"remove_unused_columns": False, "label_names": ["labels"], "logging_nan_inf_filter": False}
        model = make_trainable(base, resolve({"lora_r": 4, "fast": fast}), "tiny")
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.02)
        return QLoRATrainer(
            model=model,
            args=transformers.TrainingArguments(output_dir=str(tmp_path / folder), **quiet, **taken, **(options | arguments)),
            train_dataset=sequences(count, packing=True),
            data_collator=collate,
        )

    return make


def begun_at(trainer: QLoRATrainer, scale: float, growth_interval: int = 2000) -> QLoRATrainer:
    assert trainer.loss_scale is not None
    state = {"scale": scale, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": growth_interval}
    trainer.loss_scale.scaler.load_state_dict(state | {"_growth_tracker": 0})
    return trainer


def scale_of(trainer: QLoRATrainer) -> float:
    assert trainer.loss_scale is not None
    return trainer.loss_scale.scaler.get_scale()


def skipped_steps(trainer: QLoRATrainer) -> int:
    assert trainer.loss_scale is not None
    return trainer.loss_scale.skipped_steps


@pytest.mark.slow
@pytest.mark.parametrize("fast", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("clipped_to", [0.3, 0.0])
def test_losses_and_gradient_norms_are_those_of_fp32(trainer_in: Any, fast: bool, clipped_to: float) -> None:
    """The norm is of the gradients without the scale, whether they are clipped or not, and so is what they are clipped to."""
    found, exact = (trainer_in(dtype, fast, max_grad_norm=clipped_to) for dtype in (torch.float16, torch.float32))
    assert bool(blocks_of(found.model)) is fast
    for trainer in (found, exact):
        trainer.train()
    assert exact.loss_scale is None
    assert losses(found) == pytest.approx(losses(exact), rel=2e-3)
    assert gradient_norms(found) == pytest.approx(gradient_norms(exact), rel=2e-2)
    assert mean_loss(found.state) == pytest.approx(mean_loss(exact.state), rel=2e-3)
    assert (skipped_steps(found), scale_of(found)) == (0, BEGUN)


@pytest.mark.parametrize("fast", LAYERS.values(), ids=LAYERS.keys())
def test_gradients_are_nearer_to_fp32s_than_bf16s_are(trainer_in: Any, fast: bool) -> None:
    """By their eleven bits to eight; with the scale that training begins with."""
    errors = {}
    exact = gradients(trainer_in(torch.float32, fast))
    for dtype in (torch.float16, torch.bfloat16):
        found = gradients(trainer_in(dtype, fast))
        errors[dtype] = max(((found[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact)
    assert errors[torch.float16] < 0.5 * errors[torch.bfloat16]
    assert errors[torch.float16] < 0.02


def gradients(trainer: QLoRATrainer) -> dict[str, torch.Tensor]:
    """Of a batch, as the optimizer gets them."""
    trainer.optimizer = trainer.accelerator.prepare(trainer.create_optimizer())
    trainer.pass_through(collate([trainer.train_dataset[0], trainer.train_dataset[1]]))
    trainer._unscale()
    return {name: weights.grad.double() for name, weights in trainer.model.named_parameters() if weights.grad is not None}


@pytest.mark.slow
# bitsandbytes and torch's plain AdamW are not told of a skipped step, they are not called.
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_a_step_that_overflows_is_skipped_and_training_goes_on(trainer_in: Any, optim: str) -> None:
    """From an enormous scale, which is halved until gradients fit."""
    options = {"max_steps": 50, "lr_scheduler_type": "constant", "warmup_steps": 0}
    trainer = begun_at(trainer_in(torch.float16, optim=optim, count=4, **options), 2.0**36)
    before = adapter(trainer)
    seen = []
    trainer.add_callback(noting(lambda: seen.append((skipped_steps(trainer), adapter(trainer)))))
    trainer.train()
    skipped = skipped_steps(trainer)
    assert 10 < skipped < 30
    assert scale_of(trainer) == 2.0 ** (36 - skipped)
    assert all(values.isfinite().all() for values in adapter(trainer).values())
    for (earlier, unchanged), (later, weights) in pairwise([(0, before), *seen]):
        same = [torch.equal(values, unchanged[name]) for name, values in weights.items()]
        assert all(same) if later > earlier else not any(same)
    assert [count - earlier for (earlier, _), (count, _) in pairwise([(0, before), *seen])] == [
        int(not math.isfinite(norm)) for norm in gradient_norms(trainer)
    ]
    assert sum(losses(trainer)[-4:]) < 0.98 * sum(losses(trainer)[:4])


def noting(note: Callable[[], None]) -> transformers.TrainerCallback:
    class Noting(transformers.TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            note()

    return Noting()


@pytest.mark.slow
def test_the_schedule_of_learning_rates_goes_on_as_trainers_does(trainer_in: Any) -> None:
    """accelerate sees a step that was not called, and none that the optimizer skips by itself."""
    rates = {}
    for optim in ("adamw_torch_fused", "adamw_torch"):
        trainer = begun_at(trainer_in(torch.float16, optim=optim, max_steps=4, warmup_steps=0), 2.0**60)
        trainer.train()
        rates[optim] = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates["adamw_torch"] == [1e-2] * 4
    assert rates["adamw_torch_fused"] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_the_scale_grows_again(trainer_in: Any) -> None:
    trainer = begun_at(trainer_in(torch.float16, max_steps=5), 256.0, growth_interval=2)
    trainer.train()
    assert scale_of(trainer) == 1024.0


@pytest.mark.slow
def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(trainer_in: Any, tmp_path: Path) -> None:
    """With the scale, and how long since it was changed; the file is read as weights, which runs nothing."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = begun_at(trainer_in(torch.float16, folder="whole", **options), 2.0**33, growth_interval=2)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    state = torch.load(checkpoint / "scaler.pt", weights_only=True)
    assert state["scale"] < 2.0**33
    resumed = trainer_in(torch.float16, folder="resumed", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert scale_of(resumed) == scale_of(whole)
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(values, adapter(whole)[name]) for name, values in adapter(resumed).items())


def test_activations_that_overflow_end_as_a_skipped_step(trainer_in: Any, tmp_path: Path) -> None:
    """The loss of that step is not finite; those that are logged after it are, and so is their mean."""
    trainer = trainer_in(torch.float16, max_steps=4)
    block = blocks_of(trainer.model)[0]
    attend = block.attention

    def overflowing_in_the_second_step(*states: torch.Tensor, **options: Any) -> torch.Tensor:
        return attend(*states, **options) * (1e6 if trainer.state.global_step == 1 else 1)

    block.attention = overflowing_in_the_second_step
    told = Told()
    metrics = tmp_path / "metrics.jsonl"
    trainer.add_callback(Figures(metrics, StepClock(CPU), told, lambda steps, **figures: None, trainer.loss_scale))
    trainer.train()
    assert [math.isfinite(loss) for loss in losses(trainer)] == [True, False, True, True]
    assert mean_loss(trainer.state) == pytest.approx(sum(loss for loss in losses(trainer) if math.isfinite(loss)) / 3)
    assert (skipped_steps(trainer), scale_of(trainer)) == (1, BEGUN / 2)
    assert all(values.isfinite().all() for values in adapter(trainer).values())
    assert len(told.warnings) == 1
    assert [part for part in ("step 2: ", "fp16", "skipped") if part not in told.warnings[0]] == []
    assert [json.loads(line)["loss"] is None for line in metrics.read_text().splitlines()] == [False, True, False, False]
    loss_chart.draw(metrics, tmp_path / "loss.svg")


def test_what_overflows_whatever_the_scale_ends_the_training(trainer_in: Any, tmp_path: Path) -> None:
    trainer = begun_at(trainer_in(torch.float16, max_steps=10), 4.0)
    block = blocks_of(trainer.model)[0]
    attend = block.attention
    block.attention = lambda *states, **options: attend(*states, **options) * 1e6
    before = adapter(trainer)
    trainer.add_callback(
        Figures(tmp_path / "m.jsonl", StepClock(CPU), Silent(), lambda steps, **figures: None, trainer.loss_scale)
    )
    with pytest.raises(VerificationError) as ended:
        trainer.train()
    assert trainer.state.global_step == 3
    assert ended.value.message.startswith("activations or gradients overflow fp16 at step 3")
    assert "--compute-dtype bf16" in ended.value.hint
    assert all(torch.equal(values, before[name]) for name, values in adapter(trainer).items())


def test_an_infinite_held_out_loss_ends_it_at_once(tmp_path: Path) -> None:
    figures = Figures(tmp_path / "m.jsonl", StepClock(CPU), Silent(), lambda steps, **more: None, LossScale(CPU))
    state: Any = SimpleNamespace(global_step=2, epoch=1.0)
    with pytest.raises(VerificationError, match="overflow fp16 at step 2"):
        figures.on_log(None, state, None, {"eval_loss": math.inf})  # type: ignore[arg-type]


@pytest.mark.slow
def test_batches_in_smaller_passes_have_the_same_scale(trainer_in: Any) -> None:
    whole, parted = (trainer_in(torch.float16) for _ in range(2))
    parted.passes.largest = 40
    for trainer in (whole, parted):
        trainer.train()
    assert losses(parted) == pytest.approx(losses(whole), rel=1e-3)
    assert gradient_norms(parted) == pytest.approx(gradient_norms(whole), rel=1e-2)
