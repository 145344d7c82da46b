"""Saving a checkpoint and explaining the error when memory runs out for good."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import OutOfMemory, first_line
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.data.store import TRAIN, VALIDATION, split_file
from llmft_cli.models import loading
from llmft_cli.models.decoder_layers import decoder_layers
from llmft_cli.run_dir.run import RunDir
from llmft_cli.settings.config import Config
from llmft_cli.training.loop.smaller_passes import DoesNotFit, find_rows, is_out_of_memory
from llmft_cli.training.step.checkpointing import is_checkpointed

if TYPE_CHECKING:
    from llmft_cli.training.batches.collate import Batch
    from llmft_cli.training.loop.trainer import QLoRATrainer

TOKENS_QUOTED = 16


@contextmanager
def leaving_a_checkpoint(trainer: QLoRATrainer, run: RunDir, config: Config) -> Iterator[None]:
    """If memory runs out for good, save a checkpoint of the completed steps and say how to continue.

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except DoesNotFit as error:
        trainer.save_completed_steps()
        what = f"{describe_row(error.failure.part, trainer, run, config)} does not fit: {error.failure.reason}"
        raise OutOfMemory(f"out of memory {moment(trainer)}: {what}", next_steps(run, config, trainer.model)) from None
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        # Outside a pass, for example in the optimizer: weights may be half updated, so only earlier checkpoints are valid.
        raise OutOfMemory(
            f"out of memory {moment(trainer)}: {first_line(error)}", next_steps(run, config, trainer.model)
        ) from error


def moment(trainer: QLoRATrainer) -> str:
    done = trainer.state.global_step
    return f"after step {done} of {trainer.state.max_steps}" if done else "before the end of the first step"


def describe_row(part: Batch, trainer: QLoRATrainer, run: RunDir, config: Config) -> str:
    """The position of a part's row in the run's data, its length, and the beginning of its target."""
    splits = [(TRAIN, trainer.train_dataset), (VALIDATION, trainer.eval_dataset)]
    of_split = [(name, sequences.rows) for name, sequences in splits if sequences is not None]
    split, rows, number = next((name, rows, found[0]) for name, rows in of_split if (found := find_rows(part, rows)))
    targets = [label for label in part["labels"][0].tolist() if label != IGNORED][:TOKENS_QUOTED]
    tokenizer = loading.load_run_tokenizer(run, config.trust_remote_code)
    quoted = " ".join(tokenizer.decode(targets).split())
    return (
        f"row {number:,} of {split_file(run.data, split)} "
        f"({rows.lengths[number - 1]:,} tokens, its target begins with {quoted!r})"
    )


def next_steps(run: RunDir, config: Config, model: Any) -> str:
    """The commands that fix it, with the run's own settings."""
    path = shlex.quote(str(run.path))
    settings = f"--config {shlex.quote(str(run.config_file))}"
    resumable = run.resumable_checkpoints(run.entry("train") or {})
    again = f"resume with: llmft train {path} --resume" if resumable else f"start again with: llmft train {path} {settings}"
    if not all(map(is_checkpointed, decoder_layers(model))):
        return f"{again} --gradient-checkpointing"
    sources = " ".join(shlex.quote(source) for source in (run.entry("prepare") or {})["sources"])
    shorter = f"{settings} --max-seq-length {config.max_seq_length // 2} --overwrite"
    return (
        f"when more memory is free, {again}; or use shorter rows: "
        f"llmft prepare {sources} --run {path} {shorter} && llmft train {path} {shorter}"
    )
