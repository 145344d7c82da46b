"""Steps that are logged while the next one runs: the same figures of the same steps, and none is forgotten."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from llmft_cli.training.judgement.result import mean_loss
from llmft_cli.training.loop.smaller_passes import DoesNotFit
from llmft_cli.training.loop.trainer import QLoRATrainer

from ..tiny_training import OUT_OF_MEMORY, make_trainer


class Seen(transformers.TrainerCallback):
    """What happens, in its order: steps that begin, logs, evaluations and checkpoints, with the step that they are of."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("begin", state.global_step + 1))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.events.append(("log", state.global_step))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("evaluate", state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("save", state.global_step))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> Any:
    """Make a trainer that logs late, as on a GPU; here copies are there at once."""
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))

    def make(folder: Path, **options: Any) -> tuple[QLoRATrainer, Seen]:
        trainer, seen = make_trainer(tiny_model_dir, folder, **options), Seen()
        trainer.add_callback(seen)
        trainer._defers_logs = True
        return trainer, seen

    return make


OPTIONS: dict[str, Any] = {"max_steps": 7, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"logging_steps": 2}, {"max_grad_norm": 0.0}])
def test_the_history_is_that_of_logging_at_once(late: Any, tiny_model_dir: Path, tmp_path: Path, changes: Any) -> None:
    expected = make_trainer(tiny_model_dir, tmp_path / "at once", **OPTIONS | changes)
    expected.train()
    trainer, _ = late(tmp_path / "late", **OPTIONS | changes)
    trainer.train()
    told = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")
    histories = [[{name: row.get(name) for name in told} for row in one.state.log_history] for one in (expected, trainer)]
    assert histories[1][:-1] == histories[0][:-1]  # the last is Trainer's summary
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(expected.state.log_history[-1]["train_loss"])
    assert mean_loss(trainer.state) == mean_loss(expected.state)


def test_a_step_is_logged_when_the_next_is_launched_and_before_it_is_evaluated_or_saved(late: Any, tmp_path: Path) -> None:
    trainer, seen = late(tmp_path, **OPTIONS | {"max_steps": 6})
    trainer.train()
    assert seen.events == [
        ("begin", 1),
        ("begin", 2), ("log", 1),
        ("begin", 3), ("log", 2), ("log", 3), ("evaluate", 3), ("save", 3),
        ("begin", 4),
        ("begin", 5), ("log", 4),
        ("begin", 6), ("log", 5), ("log", 6), ("evaluate", 6), ("save", 6),
    ]  # fmt: skip


@pytest.mark.slow
def test_what_was_not_logged_yet_is_in_the_checkpoint_of_a_training_that_breaks_off(late: Any, tmp_path: Path) -> None:
    trainer, seen = late(tmp_path, max_steps=7)
    compute_loss = trainer.compute_loss

    def broken_at_the_fifth(model: Any, inputs: Any, **options: Any) -> torch.Tensor:
        if trainer.state.global_step == 4:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return compute_loss(model, inputs, **options)

    trainer.compute_loss = broken_at_the_fifth
    with pytest.raises(DoesNotFit):
        trainer.train()
    assert ("log", 4) not in seen.events
    trainer.save_completed_steps()
    assert seen.events[-2:] == [("log", 4), ("save", 4)]
    saved = transformers.TrainerState.load_from_json(str(tmp_path / "checkpoint-4" / "trainer_state.json"))
    assert [row["step"] for row in saved.log_history] == [1, 2, 3, 4]
