"""Counts of what the checks find, with examples, and what each means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmft_cli.data.checks import answers, languages, secrets, texts, tokens
from llmft_cli.data.checks.excerpts import context, excerpt
from llmft_cli.data.checks.languages import Sampled
from llmft_cli.data.checks.rows import CheckedRow, Hit, Joined, Texts

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

LEVELS = ("error", "warning", "note")
EXAMPLES = 3
# So few rows of thousands shape no model; what must not be in the data at all is not counted that way.
FEW_SHARE = 0.001
ONE_IS_TOO_MANY = frozenset({"secrets", "passwords", "emails"})

MEANINGS = {
    "secrets": ("error", "keys or tokens, which the model may repeat to anyone: remove them, and revoke the real ones"),
    "passwords": ("warning", "passwords or keys with values that look real: remove them, or put made-up ones there"),
    "emails": ("warning", "e-mail addresses that look real, which the model may repeat: put some at example.com there"),
    "mojibake": ("warning", "text was decoded wrongly (UTF-8 read as another encoding): read the source again as UTF-8"),
    "control_characters": ("warning", "control or invisible characters, which the model learns to write: remove them"),
    "refusals": ("warning", "answers that refuse or speak of being an AI, which the model learns: remove unwanted ones"),
    "empty_answers": ("warning", "answers that say nothing: remove the rows, or write an answer"),
    "copied_answers": ("warning", "an answer is another message of its row, word for word: see whether columns are mixed up"),
    "repetitions": ("warning", "an answer says the same over and over, which the model learns to do: remove the rows"),
    "byte_tokens": ("warning", "the tokenizer breaks the text into bytes: choose a model that knows its script or symbols"),
    "mostly_masked": ("note", "less than 5% of the tokens are learned from: long prompts cost their time and teach little"),
    "short_answers": (
        "note",
        "every answer is a single word or number: fine for classification; otherwise answers become terse",
    ),
}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        level: error, warning or note.
        count: rows that it concerns.
        meaning: what it means and what to do, in one line.
        examples: the first rows: source, line, excerpt; secrets are masked.
    """

    check: str
    level: str
    count: int
    meaning: str
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where something was found: the row, and as much of its text as an excerpt needs."""

    source: str
    line: int
    text: str
    start: int
    end: int

    def shown(self) -> dict[str, Any]:
        return {"source": self.source, "line": self.line, "excerpt": excerpt(self.text, self.start, self.end)}


@dataclass
class Tally:
    """What was found in some rows; those of later rows are added to it."""

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    sampled: list[Sampled] = field(default_factory=list)

    def add(self, later: Tally) -> None:
        self.rows += later.rows
        for check, count in later.counts.items():
            self.counts[check] = self.counts.get(check, 0) + count
            known = self.places.setdefault(check, [])
            known += later.places[check][: EXAMPLES - len(known)]
        self.sampled = languages.smallest(self.sampled + later.sampled)


class Checks:
    """Looks at batches of rows and keeps count; the findings do not depend on how rows are batched.

    Args:
        byte_ids: the tokens that hold a piece of a character only, as `byte_token_ids` finds them.
    """

    def __init__(self, byte_ids: Collection[int]) -> None:
        self._byte_ids = byte_ids
        self._tally = Tally()

    def look_at(self, rows: Sequence[CheckedRow]) -> None:
        """Check a batch of rows, and keep count; many at once are quickest."""
        tally = Tally(rows=len(rows), sampled=languages.sample(rows, self._tally.sampled))
        for check, hits in self._hits(rows):
            first: dict[int, Hit] = {}
            for hit in hits:
                first.setdefault(hit.row, hit)
            if first:
                tally.counts[check] = len(first)
                tally.places[check] = [place_of(first[row], rows[row]) for row in sorted(first)[:EXAMPLES]]
        self._tally.add(tally)

    def findings(self) -> list[Finding]:
        """What was found, errors first, then by count."""
        tally = self._tally
        found = []
        for check, count in tally.counts.items():
            level, meaning = MEANINGS[check]
            if level == "warning" and count < FEW_SHARE * tally.rows and check not in ONE_IS_TOO_MANY:
                level = "note"
            found.append(Finding(check, level, count, meaning, [place.shown() for place in tally.places[check]]))
        found += language_findings(tally.sampled)
        return sorted(found, key=lambda finding: (LEVELS.index(finding.level), -finding.count, finding.check))

    def _hits(self, rows: Sequence[CheckedRow]) -> Iterator[tuple[str, Iterable[Hit]]]:
        everything, answered = Texts.of(row.texts for row in rows), Texts.of(row.answers for row in rows)
        joined = Joined.of(everything.texts)
        for check, candidates, find in (
            ("secrets", secrets.secret_candidates, secrets.find_secret),
            ("passwords", secrets.password_candidates, secrets.find_password),
            ("emails", texts.email_candidates, texts.find_email),
            ("mojibake", texts.mojibake_candidates, texts.find_mojibake),
            ("control_characters", texts.control_candidates, texts.find_control),
        ):
            yield check, found_in(everything, candidates(joined), find)
        empty, short = answers.trivial_answers(rows, answered)
        yield "empty_answers", empty
        yield "short_answers", short
        yield "refusals", answers.refusals(answered)
        yield "copied_answers", answers.copies(rows)
        yield "repetitions", answers.repetitions(answered)
        not_ascii = sorted({everything.rows[number] for number in joined.foreign})
        yield "byte_tokens", tokens.rows_in_bytes(rows, not_ascii, self._is_byte)
        yield "mostly_masked", tokens.mostly_masked(rows)

    @cached_property
    def _is_byte(self) -> NDArray[numpy.bool_]:
        """By token id whether it is a byte token; the last entry, which is not, stands for all higher ids."""
        import numpy

        table = numpy.zeros(max(self._byte_ids, default=-2) + 2, numpy.bool_)
        table[list(self._byte_ids)] = True
        return table


def found_in(everything: Texts, candidates: Iterable[int], find: Callable[[str], tuple[int, int] | None]) -> Iterator[Hit]:
    """What `find` finds in the texts that a quick search took out."""
    for number in sorted(set(candidates)):
        if span := find(everything.texts[number]):
            yield Hit(everything.rows[number], everything.texts[number], *span)


def place_of(hit: Hit, row: CheckedRow) -> Place:
    return Place(row.source, row.line, *context(hit.text, hit.start, hit.end))


def language_findings(sampled: Sequence[Sampled]) -> list[Finding]:
    """Notes on rows in other languages than most, and on answers in another language than their question."""
    told = languages.languages_of(sampled)
    total = told.counts.total()
    found = []
    if told.others and len(told.others) >= languages.MIX_SHARE * total:
        by_count = sorted(told.counts.items(), key=lambda item: (-item[1], item[0]))
        shares = ", ".join(f"{code} {count / total:.0%}" for code, count in by_count if count / total >= 0.005)
        meaning = f"rows are in several languages (of {total} sampled: {shares}): see whether all are wanted"
        examples = [sampled_place(row, row.answer) for row in told.others[:EXAMPLES]]
        found.append(Finding("languages", "note", len(told.others), meaning, examples))
    if told.switching and len(told.switching) >= languages.SWITCH_SHARE * told.pairs:
        meaning = f"question and answer differ in language (of {told.pairs} sampled): right for translation, else mend the rows"
        examples = [sampled_place(row, f"{row.question} | {row.answer}") for row in told.switching[:EXAMPLES]]
        found.append(Finding("language_switch", "note", len(told.switching), meaning, examples))
    return found


def sampled_place(row: Sampled, text: str) -> dict[str, Any]:
    return Place(row.source, row.line, text, 0, 0).shown()
