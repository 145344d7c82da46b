"""Which languages rows are in, told from a sample of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from llmft_cli.data.checks.rows import CheckedRow

SAMPLE = 300
# A language is told as surely from a few sentences as from a page.
TOLD_FROM = 240
# Of shorter texts, and of less sure guesses, one in ten is wrong.
SHORTEST = 40
SUREST = 0.9
# One in fifty is more than names, titles and wrong guesses make up.
MIX_SHARE = 0.02
SWITCH_SHARE = 0.05
LETTERS = re.compile(r"[^\W\d_]+")
# Multiplied by the golden ratio and cut to 32 bits, line numbers lie evenly, however many there are.
GOLDEN = 0x9E3779B1


class Sampled(NamedTuple):
    """The beginnings of a row's question and answer; the smallest `order` are the sample."""

    order: int
    source: str
    line: int
    question: str
    answer: str


def sample(rows: Sequence[CheckedRow], known: Sequence[Sampled]) -> list[Sampled]:
    """The rows of a batch that may be in the sample; which are does not depend on how rows are batched.

    Args:
        known: the sample of earlier rows.
    """
    highest = known[-1].order if len(known) == SAMPLE else 0xFFFFFFFF
    orders = [row.line * GOLDEN & 0xFFFFFFFF for row in rows]
    return smallest([sampled(row, order) for row, order in zip(rows, orders, strict=True) if order <= highest and row.texts])


def sampled(row: CheckedRow, order: int) -> Sampled:
    question = row.texts[-2][:TOLD_FROM] if row.answers and len(row.texts) > 1 else ""
    return Sampled(order, row.source, row.line, question, row.texts[-1][:TOLD_FROM])


def smallest(rows: list[Sampled]) -> list[Sampled]:
    return sorted(rows)[:SAMPLE]


class Languages(NamedTuple):
    """What a sample tells: rows by language of the answer, those in others than the commonest, those that switch."""

    counts: Counter[str]
    others: list[Sampled]
    switching: list[Sampled]
    pairs: int


def languages_of(rows: Sequence[Sampled]) -> Languages:
    """Tell the languages of a sample; texts that are too short or mixed to tell are left out."""
    ordered = sorted(rows, key=lambda row: (row.source, row.line))
    told = [(row, language(row.question), language(row.answer)) for row in ordered]
    counts = Counter(answer for _, _, answer in told if answer)
    main = max(sorted(counts), key=counts.__getitem__, default=None)
    return Languages(
        counts,
        [row for row, _, answer in told if answer and answer != main],
        [row for row, question, answer in told if question and answer and question != answer],
        sum(1 for _, question, answer in told if question and answer),
    )


def language(text: str) -> str | None:
    """The code of a text's language (ISO 639), or None where it cannot be told."""
    words = " ".join(LETTERS.findall(text))
    if len(words.encode("utf-8", "ignore")) < SHORTEST:
        return None
    code, sure = identifier().classify(words)
    return code if sure >= SUREST else None


@cache
def identifier() -> Any:
    """The model that tells languages; it takes half a second to read."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
