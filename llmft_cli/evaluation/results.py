"""The results of an evaluation: the source of summary.json, predictions.jsonl and the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmft_cli.evaluation.comparison import Comparison

# Display names of the metrics.
LABELS = {
    "loss": "held-out loss",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
}
LOWER_IS_BETTER = {"loss", "perplexity"}
MAIN_METRIC = "token_f1"


def label(metric: str) -> str:
    return LABELS.get(metric, metric)


@dataclass(frozen=True)
class ArmScores:
    """Mean scores of one arm; None if there was nothing to measure.

    Args:
        loss: mean cross-entropy of the run's held-out split, nats per supervised token.
        perplexity: exp(loss).
        exact_match, token_f1, rouge_l, chrf: means from 0 to 1 over the prompts with an expected answer, without thinking.
        cut: answers that were cut at `max_new_tokens`.
        empty: answers with nothing in them but thinking.
        thinking: answers that begin with thinking.
        raw: the text metrics with all thinking scored as part of the answers; None if no answer has any.
    """

    loss: float | None = None
    perplexity: float | None = None
    exact_match: float | None = None
    token_f1: float | None = None
    rouge_l: float | None = None
    chrf: float | None = None
    cut: int = 0
    empty: int = 0
    thinking: int = 0
    raw: dict[str, float] | None = None


@dataclass(frozen=True)
class Prediction:
    """One prompt and the answers of all arms.

    Args:
        messages: the prompt's messages, each with role and content.
        expected: the expected answer, a list if several are right, or None.
        answers: answer by arm, as generated.
        scores: text metrics by arm, without thinking; empty without an expected answer.
        cut: by arm, whether the answer was cut at `max_new_tokens`.
        scored: the answer without thinking, by arm, of those that have thinking.
        raw_scores: as `scores`, with thinking; empty if neither an answer nor the expected one has any.
    """

    messages: list[dict[str, str]]
    expected: str | list[str] | None
    answers: dict[str, str]
    scores: dict[str, dict[str, float]]
    cut: dict[str, bool] = field(default_factory=dict)
    scored: dict[str, str] = field(default_factory=dict)
    raw_scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def is_cut(self, arm: str) -> bool:
        return self.cut.get(arm, False)

    def is_empty(self, arm: str) -> bool:
        return not self.scored.get(arm, self.answers[arm]).strip()


@dataclass(frozen=True)
class HeldOutRows:
    """What the held-out loss was measured on: rows of the run's held-out split, and their supervised tokens."""

    rows: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """An evaluation of a run.

    Args:
        run: the run's path.
        name: of the evaluation, unique in the run.
        model: the base model.
        arms: scores by arm, the baseline first.
        comparisons: one for each pair of arms and metric, if prompts have expected answers.
        predictions: in the order of the prompts.
        settings: of the evaluation, by name.
        held_out: what the loss was measured on; None without held-out rows.
        complete: the comparison in the main metric over the prompts where no answer was cut, if some were and some were not.
    """

    run: str
    name: str
    model: str
    arms: dict[str, ArmScores]
    comparisons: list[Comparison]
    predictions: list[Prediction]
    settings: dict[str, Any]
    held_out: HeldOutRows | None = None
    complete: Comparison | None = None
