"""The results of an evaluation: the source of summary.json, predictions.jsonl and the report."""

from __future__ import annotations

from dataclasses import dataclass
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


def label(metric: str) -> str:
    return LABELS.get(metric, metric)


@dataclass(frozen=True)
class ArmScores:
    """Mean scores of one arm; None if there was nothing to measure.

    Args:
        loss: mean cross-entropy of the run's held-out split, nats per supervised token.
        perplexity: exp(loss).
        exact_match, token_f1, rouge_l, chrf: means from 0 to 1 over the prompts with an expected answer.
    """

    loss: float | None = None
    perplexity: float | None = None
    exact_match: float | None = None
    token_f1: float | None = None
    rouge_l: float | None = None
    chrf: float | None = None


@dataclass(frozen=True)
class Prediction:
    """One prompt and the answers of all arms.

    Args:
        messages: the prompt's messages, each with role and content.
        expected: the expected answer, or None.
        answers: answer by arm.
        scores: text metrics by arm; empty without an expected answer.
    """

    messages: list[dict[str, str]]
    expected: str | None
    answers: dict[str, str]
    scores: dict[str, dict[str, float]]


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
    """

    run: str
    name: str
    model: str
    arms: dict[str, ArmScores]
    comparisons: list[Comparison]
    predictions: list[Prediction]
    settings: dict[str, Any]
