"""Options that may make rows readable, most likely first, by the rows' own keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from llmft_cli.base.errors import ConfigError
from llmft_cli.data.cures.keys import ANSWERS, CONTEXTS, QUESTIONS, SYSTEMS, TEXTS, Column, columns_of
from llmft_cli.data.forms.columns import parse_columns
from llmft_cli.data.forms.formats import PARSERS
from llmft_cli.data.forms.preferences import columns_for_chosen, comparison_in, pair_of
from llmft_cli.settings.config import Config

MOST_PAIRS, MOST_DOCUMENTS = 24, 3


@dataclass(frozen=True)
class Candidate:
    """Settings to try.

    Attributes:
        certain: whether the keys leave no doubt of what is meant, so that nothing else need be offered.
        goal: what the settings are for, if that is not to read the rows.
        sentences: whether questions and answers must have several words, as nothing else tells what they are.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    certain: bool = True
    goal: str = ""
    sentences: bool = False


def candidates(rows: Sequence[Any], config: Config) -> Iterator[Candidate]:
    """Formats and columns to try on rows as they were read."""
    if config.format != "auto":
        yield Candidate({"format": "auto"})
    formats: list[dict[str, str]] = [{}] if config.format == "auto" else [{}, {"format": "auto"}]
    first = next((row for row in rows if isinstance(row, dict)), {})
    compares = pair_of(first) or comparison_in(first)
    for mapping, certain, goal, sentences in chosen_sides(first) if compares else mappings(columns_of(rows)):
        text = ",".join(f"{ours}={theirs}" for ours, theirs in mapping.items())
        if is_sayable(text, mapping) and text != config.columns:
            yield from (Candidate({**form, "columns": text}, certain, goal, sentences) for form in formats)
    for form in () if compares else PARSERS:
        if form != config.format:
            yield Candidate({"format": form}, certain=False, sentences=form == "text")


def is_sayable(text: str, mapping: Mapping[str, str]) -> bool:
    """Whether the columns can be given on the command line: a name may contain a comma."""
    try:
        return parse_columns(text) == mapping
    except ConfigError:
        return False


Mapped = tuple[dict[str, str], bool, str, bool]  # the columns, and the attributes of `Candidate`


def chosen_sides(row: dict[str, Any]) -> Iterator[Mapped]:
    """The columns that train on the better side of preference pairs like this one."""
    if pair := pair_of(row):
        side = "chosen" if "chosen" in pair[0] else "better"
        for columns in columns_for_chosen(row, pair[0]):
            yield columns, True, f"to train on the {side} side", False


def mappings(columns: Sequence[Column]) -> Iterator[Mapped]:
    """Turns, then questions with answers, then documents."""
    texts = [column for column in columns if column.is_text]
    system = next(iter(by_rank(texts, SYSTEMS)), None)
    for column in columns:
        if column.has_turns:
            mapping = {"messages": column.path}
            if system:
                yield {**mapping, "system": system.path}, True, "", False
            yield mapping, True, "", False
    # Labels and numbers are answers if their key says so.
    answers = [column for column in columns if column.rank(ANSWERS) is not None and not column.is_about_the_row]
    for question, answer, certain, sentences in pairs(texts, answers):
        context = next((column for column in by_rank(texts, CONTEXTS) if column not in (question, answer)), None)
        yield from ((mapping, certain, "", sentences) for mapping in with_others(question, answer, context, system))
    # A question or an answer alone is no document.
    alone = [column for column in texts if column.rank(TEXTS) is not None or column.rank((*QUESTIONS, *ANSWERS)) is None]
    for column in sorted(alone, key=lambda column: (column.rank(TEXTS) is None, -column.usual_length))[:MOST_DOCUMENTS]:
        yield {"text": column.path}, len(texts) == 1, "", True


def pairs(texts: Sequence[Column], answers: Sequence[Column]) -> Iterator[tuple[Column, Column, bool, bool]]:
    """Questions with answers: first those that both have a known word, then those of which one has, then by order.

    With each, whether it is certain, and whether both must have sentences.
    """
    asked = by_rank((column for column in texts if column.rank(SYSTEMS) is None), QUESTIONS)
    told = by_rank(answers, ANSWERS)
    named = [(question, answer, True, False) for question in asked for answer in told if question != answer]
    others = [column for column in texts if column not in asked and column not in told and column.rank(SYSTEMS) is None]
    half = [(question, answer, len(others) == 1, False) for answer in told for question in others]
    half += [(question, answer, False, True) for question in asked for answer in others]
    ordered = [(question, answer, False, True) for question, answer in combinations(others, 2)]
    yield from [*named, *half, *ordered][:MOST_PAIRS]


def by_rank(columns: Iterable[Column], names: Sequence[str]) -> list[Column]:
    """The columns whose keys have one of these words, the most telling first."""
    ranked = [(rank, column) for column in columns if (rank := column.rank(names)) is not None]
    return [column for _, column in sorted(ranked, key=lambda one: one[0])]


def with_others(question: Column, answer: Column, context: Column | None, system: Column | None) -> Iterator[dict[str, str]]:
    """The columns of a question and its answer, first with what else belongs to them."""
    further = {"system": system.path} if system and system not in (question, answer) else {}
    if context and "instruction" in question.words:
        yield {"instruction": question.path, "input": context.path, "output": answer.path, **further}
    elif context:
        yield {"question": question.path, "context": context.path, "answer": answer.path, **further}
    yield {"prompt": question.path, "completion": answer.path, **further}
    if not answer.is_text:  # a list of answers, the first of which is learned
        yield {"question": question.path, "answer": answer.path, **further}
