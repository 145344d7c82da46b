"""The answers of both arms to the same prompts, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from llmft_cli.base.reporter import Reporter
from llmft_cli.evaluation.comparison import Comparison, compare
from llmft_cli.evaluation.metrics import TEXT_METRICS, best_score
from llmft_cli.evaluation.prompts import Prompt
from llmft_cli.evaluation.results import MAIN_METRIC, ArmScores, Prediction
from llmft_cli.evaluation.thinking import (
    begins_thinking,
    expected_without_thinking,
    without_begun_thinking,
    without_thinking,
)
from llmft_cli.models.expected_time import ANSWERING, warn_if_long
from llmft_cli.serving.generation import BASE, TUNED, Answer, TunedModel, answer_all
from llmft_cli.settings.config import Config
from llmft_cli.training.loop.held_out import HeldOutLoss

ARMS = (BASE, TUNED)


def predict(
    tuned: TunedModel, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], config: Config, reporter: Reporter
) -> list[Prediction]:
    """Greedy answers of both arms to every prompt, scored if an answer is expected.

    Args:
        ids: the token ids of each prompt.
    """
    if prompts:
        reporter.note(f"answering {len(prompts)} prompts with {' and '.join(ARMS)}")
    tokens = len(ARMS) * (sum(map(len, ids)) + len(ids) * config.max_new_tokens)
    less = "use a GPU, fewer prompts, or a smaller --max-new-tokens"
    warn_if_long("answering", tuned.model, tokens, ANSWERING, tuned.device, tuned.compute_dtype, less, reporter)
    answers: dict[str, list[Answer]] = {}
    for arm in ARMS:
        with reporter.track(f"{arm} answers", total=len(prompts)) as advance:
            answers[arm] = answer_all(tuned, ids, arm, config.max_new_tokens, config.eval_batch_size, advance)
    return [
        prediction(prompt, {arm: answers[arm][index] for arm in ARMS}, begins_thinking(tuned.tokenizer, ids[index]))
        for index, prompt in enumerate(prompts)
    ]


def prediction(prompt: Prompt, answers: Mapping[str, Answer], thinking_begun: bool = False) -> Prediction:
    """A prompt's answers with their scores.

    Args:
        thinking_begun: whether the prompt ends with <think>.
    """
    texts = {arm: answer.text for arm, answer in answers.items()}
    bare = {
        arm: without_begun_thinking(answer.text, answer.cut) if thinking_begun else without_thinking(answer.text)
        for arm, answer in answers.items()
    }
    scored = {arm: text for arm, text in bare.items() if text != texts[arm]}
    cut = {arm: answer.cut for arm, answer in answers.items()}
    if prompt.expected is None:
        return Prediction(prompt.messages, None, texts, {}, cut, scored)
    expected = expected_without_thinking(prompt.expected)
    scores = {arm: best_score(text, expected) for arm, text in bare.items()}
    differ = scored or expected != prompt.expected
    raw_scores = {arm: best_score(text, prompt.expected) for arm, text in texts.items()} if differ else {}
    shown = prompt.expected if len(prompt.expected) > 1 else prompt.expected[0]
    return Prediction(prompt.messages, shown, texts, scores, cut, scored, raw_scores)


def arm_scores(arm: str, loss: HeldOutLoss | None, predictions: Sequence[Prediction]) -> ArmScores:
    scored = [prediction for prediction in predictions if prediction.scores]
    means: dict[str, Any] = {
        metric: fmean(row.scores[arm][metric] for row in scored) if scored else None for metric in TEXT_METRICS
    }
    raw = None
    if any(row.raw_scores for row in scored):
        raw = {metric: fmean((row.raw_scores or row.scores)[arm][metric] for row in scored) for metric in TEXT_METRICS}
    return ArmScores(
        loss=loss.loss if loss else None,
        perplexity=loss.perplexity if loss else None,
        **means,
        cut=sum(row.is_cut(arm) for row in predictions),
        empty=sum(row.is_empty(arm) for row in predictions),
        thinking=sum(arm in row.scored for row in predictions),
        raw=raw,
    )


def comparisons_of(predictions: Sequence[Prediction], seed: int) -> list[Comparison]:
    """Tuned against base, prompt by prompt, for every text metric."""
    scored = [prediction.scores for prediction in predictions if prediction.scores]
    return [comparison_of(scored, metric, seed) for metric in TEXT_METRICS] if scored else []


def comparison_of_complete(predictions: Sequence[Prediction], seed: int) -> Comparison | None:
    """Tuned against base in the main metric where neither answer was cut; None if all answers or no pair is complete."""
    scored = [prediction for prediction in predictions if prediction.scores]
    complete = [prediction.scores for prediction in scored if not any(map(prediction.is_cut, ARMS))]
    return comparison_of(complete, MAIN_METRIC, seed) if 0 < len(complete) < len(scored) else None


def comparison_of(scores: Sequence[Mapping[str, Mapping[str, float]]], metric: str, seed: int) -> Comparison:
    return compare(metric, BASE, TUNED, [row[BASE][metric] for row in scores], [row[TUNED][metric] for row in scores], seed)
