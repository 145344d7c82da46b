"""The gate of `train --require-improvement`, and what it says."""

from pathlib import Path

import pytest

from llmft_cli.base.errors import VerificationError
from llmft_cli.training.judgement.advice import Advice
from llmft_cli.training.judgement.requirement import require_improvement
from llmft_cli.training.judgement.result import TrainResult

RUN = Path("runs/my own")
LOWER = Advice("no_improvement", "no evaluation beats the base", "train at a lower rate: llmft train X")


def result(**changes):
    figures = {
        "steps": 3, "train_loss": 1.0, "eval_loss": 2.0, "best_step": 3, "tokens_per_second": None, "peak_memory_bytes": 1,
        "plan": {}, "adapter": "runs/my own/adapter", "trainable_parameters": 1, "seconds": 1.0, "out_of_memory_retries": 0,
        "largest_pass_tokens": None, "rehearsal_peak_bytes": None, "base_eval_loss": 3.0,
    }  # fmt: skip
    return TrainResult(**figures | changes)


def refusal(found):
    with pytest.raises(VerificationError) as raised:
        require_improvement(RUN, found)
    assert raised.value.exit_code == 6
    return raised.value


def test_an_improvement():
    require_improvement(RUN, result())
    require_improvement(RUN, result(base_eval_loss=None, starting_adapter_eval_loss=2.1))


def test_no_improvement_names_both_losses_and_what_would_help():
    error = refusal(result(eval_loss=3.0, advice=[LOWER]))
    assert error.message == ("runs/my own/adapter is no better than the base: its held-out loss is 3.0000, the base has 3.0000")
    assert error.hint == f"{LOWER.hint}; the adapter is kept: llmft chat 'runs/my own'"
    assert (error.details["eval_loss"], error.details["advice"][0]["kind"]) == (3.0, "no_improvement")


def test_no_improvement_over_the_adapter_it_began_with():
    error = refusal(result(base_eval_loss=None, starting_adapter_eval_loss=1.9))
    assert error.message == (
        "runs/my own/adapter is no better than the adapter it began with: its held-out loss is 2.0000, the adapter it began "
        "with has 1.9000"
    )


def test_what_is_unknown_is_no_improvement():
    error = refusal(result(eval_loss=None, base_eval_loss=None))
    assert error.message == "whether runs/my own/adapter is better than the base is unknown: no rows are held out"
    error = refusal(result(base_eval_loss=None))
    assert error.message.endswith("is unknown: the base's held-out loss was not measured")
