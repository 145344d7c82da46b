"""The gate of `train --require-improvement`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from llmft_cli.base.errors import VerificationError
from llmft_cli.training.judgement.result import TrainResult


def require_improvement(run: Path, result: TrainResult) -> None:
    """Check that the adapter of a finished training is better on the held-out rows than what the training began with.

    Raises:
        VerificationError: it is not, or that is unknown; its details contain the result. The training is done all the same.
    """
    hint, start, name = next_command(run, result), result.base_eval_loss, "the base"
    if start is None and result.starting_adapter_eval_loss is not None:
        start, name = result.starting_adapter_eval_loss, "the adapter it began with"
    if start is None or result.eval_loss is None:
        why = "no rows are held out" if result.eval_loss is None else "the base's held-out loss was not measured"
        raise VerificationError(f"whether {result.adapter} is better than {name} is unknown: {why}", hint, asdict(result))
    if result.eval_loss >= start:
        raise VerificationError(
            f"{result.adapter} is no better than {name}: its held-out loss is {result.eval_loss:.4f}, {name} has {start:.4f}",
            hint,
            asdict(result),
        )


def next_command(run: Path, result: TrainResult) -> str:
    """What would help, by the advice of the training, and that the adapter can be used."""
    helpful = [item.hint for item in result.advice if item.kind in ("no_improvement", "no_held_out_rows")]
    kept = f"the adapter is kept: llmft chat {shlex.quote(str(run))}"
    return "; ".join([*helpful[:1], kept])
