"""The evaluation report, as Markdown and as a self-contained HTML page.

Text from models and prompt files is untrusted: control characters become visible escapes,
the template engine escapes HTML, and Markdown is fenced or escaped.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, fields

from llmft_cli.base.html_pages import template, visible
from llmft_cli.evaluation.comparison import Comparison
from llmft_cli.evaluation.results import LOWER_IS_BETTER, ArmScores, Prediction, Summary, label

MAIN_METRIC = "token_f1"
ARM_LABELS = {"base": "the base model", "tuned": "the tuned model"}
# Smaller gains are rounding errors.
EQUAL_WITHIN = 1e-9
SIGNIFICANT_BELOW = 0.05
LOSSES_NAMED = 10
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")


@dataclass(frozen=True)
class Focus:
    """The two arms that the headline and the order of the prompts compare."""

    a: str
    b: str
    comparison: Comparison | None


@dataclass(frozen=True)
class Case:
    """A prediction with its number in the prompt file, from 1, and b's gain over a in the main metric."""

    number: int
    prediction: Prediction
    gain: float | None

    @property
    def verdict(self) -> str:
        if self.gain is None:
            return "unscored"
        if abs(self.gain) < EQUAL_WITHIN:
            return "equal"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class MetricRow:
    """One metric of all arms; `best` are the arms with the best value, if they differ."""

    metric: str
    values: dict[str, float | None]
    best: set[str]


def number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    text = f"{value:+,.{digits}f}"
    return text.replace("-", MINUS) if text.strip("+-0.,") else f"{0:.{digits}f}"


def interval(ci95: tuple[float, float] | None, digits: int = 3) -> str:
    return DASH if ci95 is None else f"{signed(ci95[0], digits)} to {signed(ci95[1], digits)}"


def probability(p_value: float | None) -> str:
    if p_value is None:
        return DASH
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count:,} prompts"


def focus_of(summary: Summary) -> Focus | None:
    """The first comparison in the main metric, else the first two arms; None for a single arm."""
    for comparison in summary.comparisons:
        if comparison.metric == MAIN_METRIC:
            return Focus(comparison.a, comparison.b, comparison)
    names = list(summary.arms)
    return Focus(names[0], names[1], None) if len(names) > 1 else None


def cases_of(summary: Summary) -> list[Case]:
    """Every prompt: by gain, largest first, then those without a score."""
    focus = focus_of(summary)

    def gain(prediction: Prediction) -> float | None:
        scores = prediction.scores
        if focus is None or focus.a not in scores or focus.b not in scores:
            return None
        return scores[focus.b][MAIN_METRIC] - scores[focus.a][MAIN_METRIC]

    cases = [Case(place, prediction, gain(prediction)) for place, prediction in enumerate(summary.predictions, 1)]
    return sorted(cases, key=lambda case: (case.gain is None, -(case.gain or 0.0)))


def metric_rows(arms: dict[str, ArmScores]) -> list[MetricRow]:
    rows = []
    for field in fields(ArmScores):
        values = {arm: getattr(scores, field.name) for arm, scores in arms.items()}
        known = [value for value in values.values() if value is not None]
        if known:
            top = min(known) if field.name in LOWER_IS_BETTER else max(known)
            best = {arm for arm, value in values.items() if value == top} if len(set(known)) > 1 else set()
            rows.append(MetricRow(field.name, values, best))
    return rows


def headline(summary: Summary) -> str:
    """The result in one plain sentence."""
    focus = focus_of(summary)
    if focus is None:
        (arm,) = summary.arms
        return f"Only {ARM_LABELS.get(arm, arm)} was evaluated, so there is nothing to compare it with."
    if focus.comparison is not None:
        scored = sum(case.gain is not None for case in cases_of(summary))
        text = text_finding(summary, focus.comparison, scored)
    elif summary.predictions:
        text = f"No text scores, because none of the {prompts(len(summary.predictions))} has an expected answer"
    else:
        text = "No prompts were answered"
    loss = loss_finding(summary.arms[focus.a].loss, summary.arms[focus.b].loss)
    return f"{text}; {loss}." if loss else f"{text}."


def text_finding(summary: Summary, comparison: Comparison, scored: int) -> str:
    a, b = (ARM_LABELS.get(arm, arm) for arm in (comparison.a, comparison.b))
    value_a, value_b = (number(getattr(summary.arms[arm], comparison.metric), 2) for arm in (comparison.a, comparison.b))
    metric = label(comparison.metric)
    where = f"On {prompts(scored)}"
    values = f"{metric} is {value_b} against {a}'s {value_a}"
    difference = signed(comparison.delta, 2)
    if comparison.ci95 is None or comparison.p_value is None:
        return f"{where} {b}'s {values} ({difference}; one prompt is too few for an interval)"
    low, high = comparison.ci95
    if low == high == 0:
        return f"{where} {b} scored the same as {a}: {metric} is {value_b} on both sides"
    chance = probability(comparison.p_value)
    chance = f"p {chance}" if chance.startswith("<") else f"p = {chance}"
    facts = f"{values} ({difference}, 95% interval {interval(comparison.ci95, 2)}, {chance})"
    if low <= 0 <= high or comparison.p_value >= SIGNIFICANT_BELOW:
        return f"{where} there is no clear difference: {b}'s {facts}"
    return f"{where} {b}'s {facts}" if comparison.delta > 0 else f"{where} {b} did worse: its {facts}"


def loss_finding(loss_a: float | None, loss_b: float | None) -> str:
    if loss_a is None or loss_b is None:
        return ""
    values = f"{number(loss_b, 2)} against {number(loss_a, 2)}"
    return f"held-out loss got worse, {values}" if loss_b > loss_a else f"held-out loss {values}"


def balance(summary: Summary, cases: list[Case]) -> str:
    """How many prompts got better and worse, in one line; empty if nothing was scored."""
    focus = focus_of(summary)
    count = Counter(case.verdict for case in cases)
    if focus is None or count["unscored"] == len(cases):
        return ""
    unscored = f", not scored {count['unscored']:,}" if count["unscored"] else ""
    return (
        f"By {label(MAIN_METRIC)}, {focus.b} against {focus.a}: "
        f"better on {count['better']:,}, worse on {count['worse']:,}, equal on {count['equal']:,}{unscored}."
    )


def largest_losses(cases: list[Case]) -> list[Case]:
    """The worst regressions, worst first. They are listed at the top, since their answers are far down."""
    worse = [case for case in cases if case.verdict == "worse"]
    return sorted(worse, key=lambda case: case.gain or 0.0)[:LOSSES_NAMED]


def case_title(case: Case) -> str:
    if case.verdict == "unscored":
        return "not scored"
    return "equal" if case.verdict == "equal" else f"{case.verdict}, {signed(case.gain or 0.0, 2)}"


def markdown(summary: Summary) -> str:
    """The report as GitHub-flavoured Markdown."""
    cases = cases_of(summary)
    parts = [
        f"# Evaluation {inline(summary.name)} of {inline(summary.run)}",
        f"Model: {inline(summary.model)}",
        inline(headline(summary)),
        *markdown_scores(summary),
    ]
    if cases:
        losses = ", ".join(f"prompt {case.number} ({signed(case.gain or 0, 2)})" for case in largest_losses(cases))
        parts += ["## Prompts", inline(balance(summary, cases)), f"Largest losses: {losses}." if losses else ""]
        parts += [markdown_case(case) for case in cases]
    settings = [[name, str(value)] for name, value in summary.settings.items()]
    parts += ["## Settings", table(["setting", "value"], settings)] if settings else []
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_scores(summary: Summary) -> list[str]:
    scores = [
        [label(row.metric) + (" (lower is better)" if row.metric in LOWER_IS_BETTER else ""), *map(number, row.values.values())]
        for row in metric_rows(summary.arms)
    ]
    comparisons = [
        [label(each.metric), f"{each.b} against {each.a}", signed(each.delta), interval(each.ci95), probability(each.p_value)]
        for each in summary.comparisons
    ]
    parts = ["## Scores", table(["metric", *summary.arms], scores)] if scores else []
    head = ["metric", "arms", "difference", "95% interval", "p"]
    return parts + (["## Comparisons", table(head, comparisons)] if comparisons else [])


def markdown_case(case: Case) -> str:
    prediction = case.prediction
    parts = [f"### Prompt {case.number}: {case_title(case)}"]
    for message in prediction.messages:
        parts += [f"**{inline(message['role'])}**", fenced(message["content"])]
    if prediction.expected is not None:
        parts += ["**expected**", fenced(prediction.expected)]
    for arm, answer in prediction.answers.items():
        scores = ", ".join(f"{label(metric)} {number(value, 2)}" for metric, value in prediction.scores.get(arm, {}).items())
        parts += [f"**{inline(arm)}**" + (f" ({scores})" if scores else ""), fenced(answer)]
    return "\n\n".join(parts)


def inline(text: str) -> str:
    """`text` as literal words in one line or table cell of Markdown."""
    one_line = " ".join(visible(text.replace("\n", "⏎")).split())
    entities = re.sub("<(?! )", "&lt;", one_line.replace("&", "&amp;")).replace(">", "&gt;")
    return MARKDOWN_SPECIAL.sub(r"\\\1", entities)


def fenced(text: str) -> str:
    """`text` in a code block with a fence longer than any run of backticks in it."""
    shown = visible(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, *rows]
    texts = ["| " + " | ".join(map(inline, line)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(head), *texts[1:]])


def html(summary: Summary) -> str:
    """The report as an HTML page without scripts or external resources."""
    page = template("llmft_cli.evaluation", "report.html.jinja", [label, number, signed, interval, probability, case_title])
    cases = cases_of(summary)
    return page.render(
        summary=summary,
        headline=headline(summary),
        rows=metric_rows(summary.arms),
        cases=cases,
        balance=balance(summary, cases),
        losses=largest_losses(cases),
        lower_is_better=LOWER_IS_BETTER,
    )
