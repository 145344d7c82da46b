"""On an NVIDIA GPU: memory really runs out during training. Run by hand: pytest -m gpu tests/gpu"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from llmft_cli.base.reporter import Silent
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.models.adapters import add_adapter
from llmft_cli.settings.config import resolve
from llmft_cli.training.batches.collate import collate
from llmft_cli.training.batches.sequences import Sequences
from llmft_cli.training.fast.architectures import offload_activations
from llmft_cli.training.loop.callbacks import Rehearsal
from llmft_cli.training.loop.smaller_passes import DoesNotFit
from llmft_cli.training.loop.trainer import QLoRATrainer
from llmft_cli.training.step.checkpointing import checkpoint_layers
from llmft_cli.training.step.tuned_model import make_trainable

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("segments_that_grow")]

STEPS, BATCH, TOKENS, ROWS = 6, 4, 2048, 4
BF16_NOISE = 1e-3
# Torch compares a wish with the limit as it is, and then takes whole segments of this size.
SEGMENT_BYTES = 20 * 2**20


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def note(self, message: str) -> None:
        self.notes.append(message)


def sequences(count: int = 40) -> Sequences:
    """Sequences of 2,048 tokens, each of four rows, half of whose tokens are supervised; a few ids come often."""
    generator = torch.Generator().manual_seed(3)
    length = TOKENS // ROWS
    made = []
    for _ in range(count):
        for _ in range(ROWS):
            ids = torch.randint(10, 60, (length,), generator=generator).tolist()
            labels = [token if place >= length // 2 else IGNORED for place, token in enumerate(ids)]
            made.append({"input_ids": ids, "labels": labels})
    groups = [range(first, first + ROWS) for first in range(0, len(made), ROWS)]
    return Sequences.grouped(datasets.Dataset.from_list(made), groups)


AUTOCAST, RECORDED, OFFLOADED = "under autocast", "recorded", "recorded, with activations offloaded"


def make_trainer(folder: Path, reporter: Silent, steps: str = AUTOCAST) -> QLoRATrainer:
    """A random Llama of 170 million bf16 weights; a batch of it needs some GiB beside them."""
    transformers.set_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=TOKENS,
    )
    base = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16).requires_grad_(False)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=BATCH,
        learning_rate=2e-3,
        bf16=steps == AUTOCAST,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=1,
    )
    arguments._n_gpu = 1
    adapter = resolve({"lora_r": 8})
    if steps == AUTOCAST:
        model = add_adapter(base, adapter, "random")
    else:
        model = make_trainable(base, adapter, "random")
        if steps == OFFLOADED:
            offload_activations(model, True)
            checkpoint_layers(model, None)
    return QLoRATrainer(
        reporter=reporter,
        model=model,
        args=arguments,
        train_dataset=sequences(),
        eval_dataset=sequences(8),
        data_collator=collate,
    )


def losses(trainer: QLoRATrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def take_memory(limit_bytes: float) -> None:
    """Limit this process to this much GPU memory."""
    torch.cuda.set_per_process_memory_fraction(limit_bytes / torch.cuda.get_device_properties(0).total_memory)


@pytest.fixture(autouse=True)
def whole_card() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    torch.cuda.empty_cache()


@dataclass(frozen=True)
class Undisturbed:
    """Losses of a training with the whole card, its held-out loss, and the bytes that weights and optimizer and all hold."""

    losses: list[float]
    eval_loss: float
    kept: int
    peak: int

    def between(self, share: float) -> float:
        """The limit at which a fraction of a whole pass's memory fits."""
        return self.kept + share * (self.peak - self.kept)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    trainer = make_trainer(tmp_path_factory.mktemp("undisturbed"), Silent())
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = torch.cuda.max_memory_allocated()
    trainer.model.zero_grad()
    found = Undisturbed(losses(trainer), trainer.evaluate()["eval_loss"], torch.cuda.memory_allocated(), peak)
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    assert found.peak > 4 * found.kept
    assert found.losses[-1] < 0.95 * found.losses[0]
    return found


class LessAfter(transformers.TrainerCallback):
    """Reduces the available memory at the end of a step."""

    def __init__(self, step: int, limit_bytes: float) -> None:
        self._step = step
        self._limit_bytes = limit_bytes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            take_memory(self._limit_bytes)


@pytest.mark.parametrize("share", [0.75, 0.3, 0.15])
def test_memory_that_runs_out_in_the_midst_changes_no_loss(share: float, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """With 0.15 of the memory of four sequences, a single one must be split between its rows."""
    told = Told()
    trainer = make_trainer(tmp_path, told)
    limit = undisturbed.between(share)
    trainer.add_callback(LessAfter(2, limit))
    trainer.train()
    assert trainer.passes.retries == len(told.warnings) >= 1
    assert trainer.passes.largest is not None
    assert trainer.passes.largest <= 2 * share * BATCH * TOKENS
    assert all(warning.startswith("step 3: out of memory with ") for warning in told.warnings)
    assert "weights and optimizer used" in told.warnings[0]
    assert torch.cuda.max_memory_reserved() <= limit + SEGMENT_BYTES
    assert losses(trainer) == pytest.approx(undisturbed.losses, rel=BF16_NOISE)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(undisturbed.eval_loss, rel=BF16_NOISE)


def test_what_does_not_fit_is_found_by_the_longest_batch(tmp_path: Path, undisturbed: Undisturbed) -> None:
    told = Told()
    trainer = make_trainer(tmp_path, told)
    rehearsal = Rehearsal(trainer, told)
    trainer.add_callback(rehearsal)
    take_memory(undisturbed.between(0.75))
    trainer.train()
    assert told.warnings
    assert all(warning.startswith(f"longest batch: out of memory with {BATCH} x ") for warning in told.warnings[:1])
    assert told.notes[0].startswith(f"longest batch ({BATCH} x {TOKENS:,} tokens) fits: peak ")
    assert rehearsal.peak_bytes is not None
    assert torch.cuda.max_memory_allocated() <= rehearsal.peak_bytes <= undisturbed.between(0.75)
    assert losses(trainer) == pytest.approx(undisturbed.losses, rel=BF16_NOISE)


def test_the_rehearsal_tells_the_peak_of_the_training_and_leaves_no_trace(tmp_path: Path, undisturbed: Undisturbed) -> None:
    told = Told()
    trainer = make_trainer(tmp_path, told)
    rehearsal = Rehearsal(trainer, told)
    trainer.add_callback(rehearsal)
    trainer.train()
    assert not told.warnings
    assert rehearsal.peak_bytes is not None
    assert undisturbed.peak <= rehearsal.peak_bytes * 1.02
    assert rehearsal.peak_bytes < undisturbed.peak * 1.25
    assert losses(trainer) == pytest.approx(undisturbed.losses, rel=1e-3)


def test_a_row_that_does_not_fit_gives_back_what_it_took(tmp_path: Path, undisturbed: Undisturbed) -> None:
    trainer = make_trainer(tmp_path, Silent())
    trainer.add_callback(LessAfter(2, undisturbed.between(0.01)))
    with pytest.raises(DoesNotFit) as raised:
        trainer.train()
    used = raised.value.failure.memory
    assert used is not None
    assert raised.value.failure.part["input_ids"].shape == (1, TOKENS // ROWS)
    assert used.kept == pytest.approx(undisturbed.kept, rel=0.05)
    assert used.kept < used.allocated <= used.reserved
    assert torch.cuda.memory_allocated() == pytest.approx(undisturbed.kept, rel=0.05)
    trainer.save_completed_steps()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").exists()


def test_evaluating_goes_on_too(tmp_path: Path, undisturbed: Undisturbed) -> None:
    told = Told()
    trainer = make_trainer(tmp_path, told)
    before = trainer.evaluate()["eval_loss"]
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.evaluate()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    take_memory(kept + 0.75 * (peak - kept))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=BF16_NOISE)
    assert trainer.evaluation.passes.retries == len(told.warnings) >= 1
    assert told.warnings[0].startswith("evaluating: out of memory with ")


# Last: recordings have workspaces of cuBLAS of their own, which stay, and other tests count what is held.


class LessWithoutRecordings(LessAfter):
    """Takes memory when recordings are dropped, as for an evaluation, so that they must be captured again."""

    def __init__(self, trainer: QLoRATrainer, step: int, limit_bytes: float) -> None:
        super().__init__(step, limit_bytes)
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self._trainer._forget_recordings()
        super().on_step_end(args, state, control, **kwargs)


@pytest.mark.parametrize("steps", [RECORDED, OFFLOADED])
def test_memory_that_runs_out_while_a_pass_is_recorded_changes_no_loss(steps: str, tmp_path: Path) -> None:
    """With offloading, the next pass used to wait for the failed capture's copies, and failed."""
    trainer = make_trainer(tmp_path, Silent(), steps)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    expected, peak = losses(trainer), torch.cuda.max_memory_allocated()
    trainer.model.zero_grad()
    trainer._forget_recordings()
    kept = torch.cuda.memory_allocated()
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    told = Told()
    trainer = make_trainer(tmp_path, told, steps)
    trainer.add_callback(LessWithoutRecordings(trainer, 2, kept + 0.6 * (peak - kept)))
    trainer.train()
    assert trainer._recorded is not None
    assert trainer._recorded.failure is not None
    assert trainer._recorded.failure.startswith("CUDA out of memory")
    assert trainer.passes.retries == len(told.warnings) >= 1
    assert trainer.passes.largest is not None
    assert losses(trainer) == pytest.approx(expected, rel=BF16_NOISE)
