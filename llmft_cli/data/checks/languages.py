"""Detects the languages of the rows from a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from llmft_cli.data.checks.rows import CheckedRow
from llmft_cli.data.words import WORD

SAMPLE = 300
# A few sentences identify a language as reliably as a page.
SAMPLED_CHARACTERS = 240
# Of shorter texts and less certain guesses, one in ten is wrong.
SHORTEST = 40
LEAST_PROBABILITY = 0.9
# Names, titles and wrong guesses stay below one in fifty.
MIX_SHARE = 0.02
SWITCH_SHARE = 0.05
# Line numbers times this, modulo 2**32, are evenly spread, however many there are (Fibonacci hashing).
GOLDEN = 0x9E3779B1


class Sampled(NamedTuple):
    """The beginnings of a row's question and answer; the rows with the smallest `order` are the sample."""

    order: int
    source: str
    line: int
    question: str
    answer: str


def sample(rows: Sequence[CheckedRow], known: Sequence[Sampled]) -> list[Sampled]:
    """The rows of a batch that may be in the sample, which does not depend on how rows are batched.

    Args:
        known: the sample so far.
    """
    highest = known[-1].order if len(known) == SAMPLE else 0xFFFFFFFF
    orders = [row.line * GOLDEN & 0xFFFFFFFF for row in rows]
    return smallest([sampled(row, order) for row, order in zip(rows, orders, strict=True) if order <= highest and row.texts])


def sampled(row: CheckedRow, order: int) -> Sampled:
    question = row.texts[-2][:SAMPLED_CHARACTERS] if row.answers and len(row.texts) > 1 else ""
    return Sampled(order, row.source, row.line, question, row.texts[-1][:SAMPLED_CHARACTERS])


def smallest(rows: list[Sampled]) -> list[Sampled]:
    return sorted(rows)[:SAMPLE]


class Languages(NamedTuple):
    """Languages in a sample.

    Attributes:
        counts: rows by language of the answer.
        others: rows not in the most common language.
        switching: rows with question and answer in different languages.
        pairs: rows with a known language of both question and answer.
    """

    counts: Counter[str]
    others: list[Sampled]
    switching: list[Sampled]
    pairs: int


def languages_of(rows: Sequence[Sampled]) -> Languages:
    """Detect the languages of a sample; texts too short or too mixed are skipped."""
    ordered = sorted(rows, key=lambda row: (row.source, row.line))
    detected = [(row, language(row.question), language(row.answer)) for row in ordered]
    counts = Counter(answer for _, _, answer in detected if answer)
    main = max(sorted(counts), key=counts.__getitem__, default=None)
    return Languages(
        counts,
        [row for row, _, answer in detected if answer and answer != main],
        [row for row, question, answer in detected if question and answer and question != answer],
        sum(1 for _, question, answer in detected if question and answer),
    )


def language(text: str) -> str | None:
    """The ISO 639 code of a text's language, or None if it is unclear."""
    words = " ".join(WORD.findall(text))
    if len(words.encode("utf-8", "ignore")) < SHORTEST:
        return None
    code, probability = identifier().classify(words)
    return code if probability >= LEAST_PROBABILITY else None


@cache
def identifier() -> Any:
    """The language identification model; loading it takes half a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
