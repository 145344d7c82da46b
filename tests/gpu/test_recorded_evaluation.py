"""On an NVIDIA GPU: evaluations during a training whose passes are recorded. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from llmft_cli.base.reporter import Silent
from llmft_cli.training.loop.held_out import held_out_loss

from .test_out_of_memory import BF16_NOISE, OFFLOADED, RECORDED, losses, make_trainer

pytestmark = pytest.mark.gpu


class EvaluateEachStep(TrainerCallback):
    """Evaluates before training and after each step, and keeps the losses beside those of direct passes.

    Attributes:
        stayed: whether the recordings of training were there after each evaluation.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.pairs: list[tuple[float, float]] = []
        self.stayed: list[bool] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.held_out_loss()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = self._trainer.held_out_loss()
        direct = held_out_loss(self._trainer.model, self._trainer.eval_dataset, 4, args.device).loss
        self.pairs.append((found, direct))
        self.stayed.append(self._trainer._recorded.has_recordings)


def peak_of_training(trainer: Any) -> int:
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("steps", [RECORDED, OFFLOADED])
def test_recorded_evaluations_have_the_loss_of_direct_ones_and_change_nothing(steps: str, tmp_path: Path) -> None:
    """Recordings were forgotten for each evaluation, and made anew after it."""
    trainer = make_trainer(tmp_path, Silent(), steps)
    peak = peak_of_training(trainer)
    expected = losses(trainer)
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    trainer = make_trainer(tmp_path, Silent(), steps)
    evaluations = EvaluateEachStep(trainer)
    trainer.add_callback(evaluations)
    peak_with_evaluations = peak_of_training(trainer)
    assert losses(trainer) == pytest.approx(expected, rel=BF16_NOISE)
    assert evaluations.stayed == [True] * len(evaluations.pairs)
    for found, direct in evaluations.pairs:
        assert found == pytest.approx(direct, rel=BF16_NOISE)
    assert trainer.evaluation is not None
    assert trainer.evaluation._recorded is not None
    assert trainer.evaluation._recorded.failure is None
    # The direct evaluation beside the recordings is what this test adds.
    assert peak_with_evaluations < 1.15 * peak
