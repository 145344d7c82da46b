"""Checks for useless or unwanted answers: empty ones, refusals, copies and loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from llmft_cli.data.checks.rows import CheckedRow, Joined, Match, Texts
from llmft_cli.data.words import count_words

TYPOGRAPHIC = "\N{RIGHT SINGLE QUOTATION MARK}"
# The length of "I have no answer to this question", the longest empty answer, with some margin.
LONGEST_TRIVIAL = 40
PUNCTUATION = " \t\r\n.,;:!?\u2026-\u2013\u2014_'\"`()[]{}<>*#/\\\u3002\uff01\uff1f\u3001"
EMPTY_ANSWERS = frozenset(
    """
    ok, okay, k, n/a, na, none, null, nil, nan, todo, tbd, empty, noinput, nooutput, no output, no answer, no response
    no comment, not applicable, not available, not sure, no idea, idk, i don't know, i dont know, i do not know
    i have no idea, i don't understand, i have no answer, i have no answer to this question
    """.strip()
    .replace("\n    ", ", ")
    .split(", ")
)

# Refusals begin an answer; later on the same words are often quoted.
OPENING = 200
REFUSAL_NEEDLES = (b"an ai", b"language model", b"artificial int", b"sorry", b"i can", b"i won", b"able to")
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?:,|[ -](?:(?:language|chat|assistant|model|bot|based|developed|trained)|i\b))"
    r"|\bas a (?:large )?language model\b"
    r"|\bi(?:'m| am) (?:just |only |merely )?an? (?:large )?(?:ai|language model|artificial intelligence)\b"
    r"|\b(?:sorry|apologi[sz]e),? (?:but )?(?:as an ai|i(?:'m| am) (?:unable|not able|an ai))"
    r"|\b(?:sorry|apologi[sz]e),? (?:but )?i (?:can't|cannot|can not|won't|don't have|do not have)"
    r"|^\W*i (?:can't|cannot|can not|won't) (?:assist|help (?:you )?with|fulfil|comply|engage|provide|generate|create|answer)"
    r"|\bi(?:'m| am) (?:unable|not able) to (?:assist|help|provide|fulfil|comply|answer|generate|access|browse|create)"
)

# Four repetitions that make up half of the answer are not a figure of speech.
REPEATS = 4
REPEATED_SHARE = 0.5
SHORTEST_REPETITION = 40
PROBE = 12
PARTS = re.compile(r"[\n.!?\u3002\uff01\uff1f]+\s*(?:\d+[.)]\s*|[-*•]\s+)?")


def trivial_answers(rows: Sequence[CheckedRow], answers: Texts) -> tuple[list[Match], list[Match]]:
    """Rows with an answer that says nothing, and other rows in which every answer is a single word or number."""
    empty, short = [], []
    brief = {row for row, answer in zip(answers.rows, answers.texts, strict=True) if len(answer) <= LONGEST_TRIVIAL}
    for number in sorted(brief):
        row = rows[number]
        nothing = next((answer for answer in row.answers if says_nothing(answer)), None)
        if nothing is not None:
            empty.append(Match(number, nothing, 0, len(nothing)))
        elif all(len(answer) <= LONGEST_TRIVIAL and count_words(answer) == 1 for answer in row.answers):
            short.append(Match(number, " ".join((*row.texts[-2:-1], row.answers[-1])), 0, 0))
    return empty, short


def says_nothing(answer: str) -> bool:
    """Whether an answer says nothing; an answer without any characters is a tool call."""
    bare = answer.strip(PUNCTUATION)
    return bool(answer.strip()) and (not bare or bare.replace(TYPOGRAPHIC, "'").lower() in EMPTY_ANSWERS)


def refusals(answers: Texts) -> Iterator[Match]:
    openings = [answer[:OPENING] for answer in answers.texts]
    joined = Joined.of(openings).lowered()
    numbers = {number for needle in REFUSAL_NEEDLES for number in joined.holding(needle)}
    for number in sorted(numbers):
        # `\u0130` is longer in lower case, which would shift the match.
        opening = openings[number].replace("\u0130", "I").lower().replace(TYPOGRAPHIC, "'")
        if match := REFUSAL.search(opening):
            yield Match(answers.rows[number], answers.texts[number], *match.span())


def copies(rows: Sequence[CheckedRow]) -> Iterator[Match]:
    """Answers that are another message of their conversation."""
    for number, row in enumerate(rows):
        for answer in row.answers:
            if answer.strip() and row.texts.count(answer) > row.answers.count(answer):
                yield Match(number, answer, 0, 0)
                break


def repetitions(answers: Texts) -> Iterator[Match]:
    for number, answer in enumerate(answers.texts):
        # Text that makes up half of an answer and occurs four times covers its middle, or nearly.
        middle = len(answer) // 2
        if len(answer) >= SHORTEST_REPETITION and answer.count(answer[middle : middle + PROBE]) >= REPEATS:
            place = repeated(answer, middle)
            if place is not None:
                yield Match(answers.rows[number], answer, place, place)


def repeated(answer: str, middle: int) -> int | None:
    """Where the line, sentence or phrase that makes up most of an answer begins, or None."""
    parts = Counter(part for part in PARTS.split(answer) if any(map(str.isalpha, part)))
    part, count = max(parts.items(), key=lambda item: len(item[0]) * item[1], default=("", 0))
    if count >= REPEATS and count * len(part) >= REPEATED_SHARE * len(answer):
        return answer.find(part)
    probe = answer[middle : middle + PROBE]
    place = answer.find(probe)
    phrase = answer[place : answer.find(probe, place + 1)]
    count = answer.count(phrase)
    if any(map(str.isalpha, phrase)) and count >= REPEATS and count * len(phrase) >= REPEATED_SHARE * len(answer):
        return place
    return None
