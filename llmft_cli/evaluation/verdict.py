"""The result of an evaluation in one plain sentence, with whatever else may explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmft_cli.evaluation.comparison import Comparison
from llmft_cli.evaluation.figures import interval, number, probability, prompts, signed
from llmft_cli.evaluation.results import MAIN_METRIC, Prediction, Summary, label
from llmft_cli.settings.quantities import format_count

ARM_LABELS = {"base": "the base model", "tuned": "the tuned model"}
SIGNIFICANT_BELOW = 0.05


@dataclass(frozen=True)
class Focus:
    """The two arms that the headline and the order of the prompts compare."""

    a: str
    b: str
    comparison: Comparison | None


def focus_of(summary: Summary) -> Focus | None:
    """The first comparison in the main metric, else the first two arms; None for a single arm."""
    for comparison in summary.comparisons:
        if comparison.metric == MAIN_METRIC:
            return Focus(comparison.a, comparison.b, comparison)
    names = list(summary.arms)
    return Focus(names[0], names[1], None) if len(names) > 1 else None


def headline(summary: Summary) -> str:
    """The result in one plain sentence."""
    focus = focus_of(summary)
    if focus is None:
        (arm,) = summary.arms
        return f"Only {named(arm)} was evaluated, so there is nothing to compare it with."
    if focus.comparison is not None:
        answered = scored_by(summary, focus)
        text = text_finding(summary, focus.comparison, answered)
    elif summary.predictions:
        answered = summary.predictions
        text = f"No text scores, because none of the {prompts(len(answered))} has an expected answer"
    else:
        answered = []
        text = "No prompts were answered"
    loss = loss_finding(summary, focus)
    return "; ".join(filter(None, [text, *cut_findings(summary, focus, answered), empty_finding(focus, answered), loss])) + "."


def named(arm: str) -> str:
    return ARM_LABELS.get(arm, arm)


def scored_by(summary: Summary, focus: Focus) -> list[Prediction]:
    """The predictions with scores of both arms."""
    return [row for row in summary.predictions if {focus.a, focus.b} <= row.scores.keys()]


def text_finding(summary: Summary, comparison: Comparison, scored: Sequence[Prediction]) -> str:
    arms = (comparison.a, comparison.b)
    a, b = map(named, arms)
    value_a, value_b = (number(getattr(summary.arms[arm], comparison.metric), 2) for arm in arms)
    metric = label(comparison.metric)
    where = f"On {prompts(len(scored))}"
    values = f"{metric} is {value_b} against {a}'s {value_a}"
    if all(row.answers[comparison.a] == row.answers[comparison.b] for row in scored):
        return f"{where} {b} gave the same answers as {a}: {metric} is {value_b}"
    if comparison.ci95 is None:
        return f"{where} {b}'s {values} ({signed(comparison.delta, 2)}; one prompt is too few for an interval)"
    if not any(comparison.ci95):
        return f"{where} {b} scored the same as {a}: {metric} is {value_b} on both sides"
    facts = f"{values} ({difference(comparison)})"
    if not is_clear(comparison):
        return f"{where} there is no clear difference: {b}'s {facts}"
    if comparison.delta > 0 and all(row.is_empty(comparison.a) for row in scored):
        return f"{where} {b}'s {facts}, but only because {a} gave no answers"
    if any(map(row_is_cut, scored)) and not confirms(summary.complete, comparison):
        return f"{where} {b}'s {facts}, but cut answers may explain the difference"
    return f"{where} {b}'s {facts}" if comparison.delta > 0 else f"{where} {b} did worse: its {facts}"


def difference(comparison: Comparison) -> str:
    chance = probability(comparison.p_value)
    chance = f"p {chance}" if chance.startswith("<") else f"p = {chance}"
    return f"{signed(comparison.delta, 2)}, 95% interval {interval(comparison.ci95, 2)}, {chance}"


def is_clear(comparison: Comparison) -> bool:
    """Whether chance is an unlikely explanation."""
    if comparison.ci95 is None or comparison.p_value is None:
        return False
    low, high = comparison.ci95
    return not low <= 0 <= high and comparison.p_value < SIGNIFICANT_BELOW


def confirms(complete: Comparison | None, comparison: Comparison) -> bool:
    """Whether the complete answers alone show the same clear difference."""
    return complete is not None and is_clear(complete) and (complete.delta > 0) == (comparison.delta > 0)


def row_is_cut(row: Prediction) -> bool:
    return any(row.cut.values())


def cut_findings(summary: Summary, focus: Focus, answered: Sequence[Prediction]) -> list[str]:
    """How many answers were cut, and the difference without them."""
    cut = counts(focus, [sum(row.is_cut(arm) for row in answered) for arm in (focus.a, focus.b)])
    if not cut:
        return []
    limit = summary.settings.get("max_new_tokens")
    found = [f"{cut} were cut at --max-new-tokens" + (f" {limit}" if limit else "")]
    if not focus.comparison:
        return found
    whole = prompts(sum(not row_is_cut(row) for row in answered))
    if summary.complete is None:
        return [*found, "no prompt has complete answers of both"]
    if summary.complete.ci95 is None:
        return [*found, f"on the {whole} with complete answers the difference is {signed(summary.complete.delta, 2)}"]
    return [*found, f"on the {whole} with complete answers the difference is {difference(summary.complete)}"]


def empty_finding(focus: Focus, answered: Sequence[Prediction]) -> str:
    """How many answers are empty where an empty one is not expected, and how many of them were cut while thinking."""
    rows = [row for row in answered if row.expected != ""]
    empty = counts(focus, [sum(row.is_empty(arm) for row in rows) for arm in (focus.a, focus.b)])
    thinking = sum(row.is_empty(arm) and row.is_cut(arm) for row in rows for arm in (focus.a, focus.b))
    return f"{empty} are empty" + (f" ({thinking:,} cut while thinking)" if thinking else "") if empty else ""


def counts(focus: Focus, of_arms: Sequence[int]) -> str:
    """How many answers of each arm; empty if there are none."""
    parts = [f"{count:,} of {named(arm)}'s" for arm, count in zip((focus.a, focus.b), of_arms, strict=True) if count]
    return f"{' and '.join(parts)} answers" if parts else ""


def loss_finding(summary: Summary, focus: Focus) -> str:
    loss_a, loss_b = summary.arms[focus.a].loss, summary.arms[focus.b].loss
    if loss_a is None or loss_b is None:
        return ""
    values = f"{number(loss_b, 2)} against {number(loss_a, 2)}"
    where = f" on the run's {format_count(summary.held_out.rows, 'held-out row')}" if summary.held_out else ""
    return f"held-out loss got worse, {values}{where}" if loss_b > loss_a else f"held-out loss {values}{where}"
