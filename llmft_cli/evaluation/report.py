"""The evaluation report, as Markdown and as a self-contained HTML page.

Text from models and prompt files is untrusted: control characters become visible escapes,
the template engine escapes HTML, and Markdown is fenced or escaped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmft_cli.base.html_pages import template, visible
from llmft_cli.evaluation.figures import interval, number, probability, signed
from llmft_cli.evaluation.results import (
    LABELS,
    LOWER_IS_BETTER,
    MAIN_METRIC,
    ArmScores,
    HeldOutRows,
    Prediction,
    Summary,
    label,
)
from llmft_cli.evaluation.thinking import RULE
from llmft_cli.evaluation.verdict import focus_of, headline
from llmft_cli.settings.quantities import format_count

# Smaller gains are rounding errors.
EQUAL_WITHIN = 1e-9
LOSSES_NAMED = 10
MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|~#$])")


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
    """One metric of all arms by its display name; `best` are the arms with the best value, if they differ."""

    name: str
    values: dict[str, float | None]
    best: set[str]


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
    """The metrics that were measured; where answers have thinking, each text metric also with the thinking."""
    rows = []
    for metric, name in LABELS.items():
        values = {arm: getattr(scores, metric) for arm, scores in arms.items()}
        if metric in LOWER_IS_BETTER:
            rows.append(metric_row(f"{name} (lower is better)", values, min))
            continue
        rows.append(metric_row(name, values, max))
        raw = {arm: scores.raw.get(metric) if scores.raw else None for arm, scores in arms.items()}
        rows.append(metric_row(f"{name}, thinking included", raw, max))
    return [row for row in rows if any(value is not None for value in row.values.values())]


def metric_row(name: str, values: dict[str, float | None], best_of: Callable[[Sequence[float]], float]) -> MetricRow:
    known = [value for value in values.values() if value is not None]
    top = best_of(known) if len(set(known)) > 1 else None
    return MetricRow(name, values, {arm for arm, value in values.items() if value == top and top is not None})


def count_rows(arms: dict[str, ArmScores]) -> list[tuple[str, dict[str, int]]]:
    """What is to be known of the answers themselves, by arm."""
    names = {"cut": "answers cut at --max-new-tokens", "empty": "empty answers", "thinking": "answers with thinking"}
    rows = [(name, {arm: getattr(scores, field) for arm, scores in arms.items()}) for field, name in names.items()]
    return [(name, counts) for name, counts in rows if any(counts.values())]


def notes(summary: Summary) -> list[str]:
    """What the scores are of, in sentences."""
    scored = sum(bool(row.scores) for row in summary.predictions)
    loss = measured_on(summary.held_out) if summary.held_out else ""
    text = f"The text metrics are means over the {format_count(scored, 'prompt')} with an expected answer." if scored else ""
    several = any(isinstance(row.expected, list) for row in summary.predictions)
    best = "Where several answers are expected, the best score counts." if several else ""
    rule = RULE if any(row.scored or row.raw_scores for row in summary.predictions) else ""
    return [note for note in (loss, text, best, rule) if note]


def measured_on(held_out: HeldOutRows) -> str:
    rows, tokens = format_count(held_out.rows, "held-out row"), f"{held_out.tokens:,}"
    return f"Held-out loss and perplexity are of the run's {rows} ({tokens} supervised tokens)."


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
    scores = [[row.name, *map(number, row.values.values())] for row in metric_rows(summary.arms)]
    scores += [[name, *(f"{count:,}" for count in counts.values())] for name, counts in count_rows(summary.arms)]
    comparisons = [
        [label(each.metric), f"{each.b} against {each.a}", signed(each.delta), interval(each.ci95), probability(each.p_value)]
        for each in summary.comparisons
    ]
    parts = ["## Scores", table(["metric", *summary.arms], scores), *map(inline, notes(summary))] if scores else []
    head = ["metric", "arms", "difference", "95% interval", "p"]
    return parts + (["## Comparisons", table(head, comparisons)] if comparisons else [])


def markdown_case(case: Case) -> str:
    prediction = case.prediction
    parts = [f"### Prompt {case.number}: {case_title(case)}"]
    for message in prediction.messages:
        parts += [f"**{inline(message['role'])}**", fenced(message["content"])]
    for expected in expected_answers(prediction):
        parts += ["**expected**", fenced(expected)]
    for arm, answer in prediction.answers.items():
        scores = [f"{label(metric)} {number(value, 2)}" for metric, value in prediction.scores.get(arm, {}).items()]
        facts = ", ".join([*marks(prediction, arm), *scores])
        parts += [f"**{inline(arm)}**" + (f" ({facts})" if facts else ""), fenced(answer)]
    return "\n\n".join(parts)


def expected_answers(prediction: Prediction) -> list[str]:
    if prediction.expected is None:
        return []
    return prediction.expected if isinstance(prediction.expected, list) else [prediction.expected]


def marks(prediction: Prediction, arm: str) -> list[str]:
    """What is to be known of an answer besides its scores."""
    found = ["cut"] if prediction.is_cut(arm) else []
    return [*found, "scored without thinking"] if arm in prediction.scored else found


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
    functions: list[Callable[..., Any]] = [label, number, signed, interval, probability, case_title, expected_answers, marks]
    page = template("llmft_cli.evaluation", "report.html.jinja", functions)
    cases = cases_of(summary)
    return page.render(
        summary=summary,
        headline=headline(summary),
        rows=metric_rows(summary.arms),
        counts=count_rows(summary.arms),
        notes=notes(summary),
        cases=cases,
        balance=balance(summary, cases),
        losses=largest_losses(cases),
        lower_is_better=LOWER_IS_BETTER,
    )
