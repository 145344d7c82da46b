"""Counts of what the checks find, with examples and explanations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmft_cli.data.checks import answers, foreign_tokens, languages, leftovers, secrets, texts, tokens
from llmft_cli.data.checks.excerpts import context, excerpt
from llmft_cli.data.checks.foreign_tokens import TokenRow
from llmft_cli.data.checks.languages import Sampled
from llmft_cli.data.checks.rows import CheckedRow, Joined, Match, Texts
from llmft_cli.settings.quantities import format_count

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

LEVELS = ("error", "warning", "note")
EXAMPLES = 3
# Fewer rows hardly affect a model. Checks for what must not be in the data at all are exempt.
FEW_SHARE = 0.001
ONE_IS_TOO_MANY = frozenset({"secrets", "passwords", "emails"})

MEANINGS = {
    "secrets": ("error", "keys or tokens, which the model may repeat to anyone: remove them, and revoke the real ones"),
    "passwords": ("warning", "passwords or keys with values that look real: remove or replace them"),
    "emails": (
        "warning",
        "e-mail addresses that look real, which the model may repeat: replace them with addresses at example.com",
    ),
    "mojibake": ("warning", "wrongly decoded text (UTF-8 read as another encoding): read the source again as UTF-8"),
    "control_characters": ("warning", "control or invisible characters, which the model learns to write: remove them"),
    "rendered_text": (
        "warning",
        "markers of a chat template in the text, learned as plain text: remove them, or give the turns as messages",
    ),
    "placeholders": ("warning", "names in double braces, as in a template that was not filled: fill them or remove the rows"),
    "json_documents": ("note", "documents that are JSON, learned as raw text: rows in JSON belong in a .jsonl file"),
    "refusals": ("warning", "answers that refuse or mention being an AI, which the model learns: remove unwanted ones"),
    "empty_answers": ("warning", "answers that say nothing: remove the rows, or write an answer"),
    "copied_answers": (
        "warning",
        "an answer repeats another message of its row word for word: check whether columns are swapped",
    ),
    "repetitions": ("warning", "an answer repeats itself over and over, which the model learns: remove the rows"),
    "byte_tokens": ("warning", "the tokenizer breaks the text into bytes: choose a model that supports its script or symbols"),
    "mostly_masked": ("note", "less than 5% of the tokens are supervised: long prompts cost time and teach little"),
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
        count: number of rows.
        meaning: explanation and remedy, in one line.
        examples: the first rows: source, line, excerpt; secrets are masked.
    """

    check: str
    level: str
    count: int
    meaning: str
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class MatchContext:
    """A match with its row, and as much of the text as an excerpt needs."""

    source: str
    line: int
    text: str
    start: int
    end: int

    def shown(self) -> dict[str, Any]:
        return {"source": self.source, "line": self.line, "excerpt": excerpt(self.text, self.start, self.end)}


@dataclass
class Tally:
    """What was found in a batch of rows; later batches are added."""

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[MatchContext]] = field(default_factory=dict)
    sampled: list[Sampled] = field(default_factory=list)
    token_rows: list[TokenRow] = field(default_factory=list)

    def add(self, later: Tally) -> None:
        self.rows += later.rows
        for check, count in later.counts.items():
            self.counts[check] = self.counts.get(check, 0) + count
            known = self.places.setdefault(check, [])
            known += later.places[check][: EXAMPLES - len(known)]
        self.sampled = languages.smallest(self.sampled + later.sampled)
        self.token_rows = foreign_tokens.smallest(self.token_rows + later.token_rows)


class Checks:
    """Checks batches of rows and counts the findings, which do not depend on how rows are batched.

    Args:
        byte_ids: the tokens that are only a part of a character, from `byte_token_ids`.
        tokenizer: with which rows of token ids must be written; None: they are not checked.
    """

    def __init__(self, byte_ids: Collection[int], tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._byte_ids = byte_ids
        self._tokenizer = tokenizer
        self._tally = Tally()

    def look_at(self, rows: Sequence[CheckedRow]) -> None:
        """Check a batch of rows; large batches are faster."""
        sampled, token_rows = languages.sample(rows, self._tally.sampled), foreign_tokens.sample(rows)
        tally = Tally(rows=len(rows), sampled=sampled, token_rows=token_rows)
        for check, matches in self._matches(rows):
            first: dict[int, Match] = {}
            for match in matches:
                first.setdefault(match.row, match)
            if first:
                tally.counts[check] = len(first)
                tally.places[check] = [match_context(first[row], rows[row]) for row in sorted(first)[:EXAMPLES]]
        self._tally.add(tally)

    def findings(self) -> list[Finding]:
        """All findings, by level (errors first), then by count."""
        tally = self._tally
        found = []
        for check, count in tally.counts.items():
            level, meaning = MEANINGS[check]
            if level == "warning" and count < FEW_SHARE * tally.rows and check not in ONE_IS_TOO_MANY:
                level = "note"
            found.append(Finding(check, level, count, meaning, [place.shown() for place in tally.places[check]]))
        found += language_findings(tally.sampled)
        if self._tokenizer is not None:
            found += foreign_token_findings(tally.token_rows, self._tokenizer)
        return sorted(found, key=lambda finding: (LEVELS.index(finding.level), -finding.count, finding.check))

    def _matches(self, rows: Sequence[CheckedRow]) -> Iterator[tuple[str, Iterable[Match]]]:
        everything, answered = Texts.of(row.texts for row in rows), Texts.of(row.answers for row in rows)
        joined = Joined.of(everything.texts)
        for check, candidates, find in (
            ("secrets", secrets.secret_candidates, secrets.find_secret),
            ("passwords", secrets.password_candidates, secrets.find_password),
            ("emails", texts.email_candidates, texts.find_email),
            ("mojibake", texts.mojibake_candidates, texts.find_mojibake),
            ("control_characters", texts.control_candidates, texts.find_control),
            ("rendered_text", leftovers.marker_candidates, leftovers.find_marker),
        ):
            yield check, found_in(everything, candidates(joined), find)
        unfilled = found_in(everything, leftovers.placeholder_candidates(joined), leftovers.find_placeholder)
        yield "placeholders", (match for match in unfilled if rows[match.row].answers)
        yield "json_documents", leftovers.json_documents(rows)
        empty, short = answers.trivial_answers(rows, answered)
        yield "empty_answers", empty
        yield "short_answers", short
        yield "refusals", answers.refusals(answered)
        yield "copied_answers", answers.copies(rows)
        yield "repetitions", answers.repetitions(answered)
        not_ascii = sorted({everything.rows[number] for number in joined.non_ascii})
        yield "byte_tokens", tokens.rows_in_bytes(rows, not_ascii, self._is_byte)
        yield "mostly_masked", tokens.mostly_masked(rows)

    @cached_property
    def _is_byte(self) -> NDArray[numpy.bool_]:
        """For each token id whether it is a byte token; the last entry (False) stands for all higher ids."""
        import numpy

        table = numpy.zeros(max(self._byte_ids, default=-2) + 2, numpy.bool_)
        table[list(self._byte_ids)] = True
        return table


def found_in(everything: Texts, candidates: Iterable[int], find: Callable[[str], tuple[int, int] | None]) -> Iterator[Match]:
    """What `find` finds in the texts preselected by a fast search."""
    for number in sorted(set(candidates)):
        if span := find(everything.texts[number]):
            yield Match(everything.rows[number], everything.texts[number], *span)


def match_context(match: Match, row: CheckedRow) -> MatchContext:
    return MatchContext(row.source, row.line, *context(match.text, match.start, match.end))


def language_findings(sampled: Sequence[Sampled]) -> list[Finding]:
    """Notes on rows in a minority language, and on answers in another language than their question."""
    detected = languages.languages_of(sampled)
    total = detected.counts.total()
    found = []
    if detected.others and len(detected.others) >= languages.MIX_SHARE * total:
        by_count = sorted(detected.counts.items(), key=lambda item: (-item[1], item[0]))
        shares = ", ".join(f"{code} {count / total:.0%}" for code, count in by_count if count / total >= 0.005)
        meaning = f"rows are in several languages (of {total} sampled: {shares}): check that all are wanted"
        examples = [sampled_place(row, row.answer) for row in detected.others[:EXAMPLES]]
        found.append(Finding("languages", "note", len(detected.others), meaning, examples))
    if detected.switching and len(detected.switching) >= languages.SWITCH_SHARE * detected.pairs:
        meaning = (
            f"question and answer differ in language (of {detected.pairs} sampled): fine for translation; otherwise fix them"
        )
        examples = [sampled_place(row, f"{row.question} | {row.answer}") for row in detected.switching[:EXAMPLES]]
        found.append(Finding("language_switch", "note", len(detected.switching), meaning, examples))
    return found


def foreign_token_findings(rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """A warning about token ids that another tokenizer has written."""
    detected = foreign_tokens.foreign_tokens(rows, tokenizer)
    if detected is None:
        return []
    meaning = (
        f"token ids look like those of another tokenizer (this one would write {detected.share:.0%} of them differently, "
        f"of {format_count(len(rows), 'sampled row')}): encode the rows with this model's tokenizer"
    )
    examples = [MatchContext(row.source, row.line, text, 0, 0).shown() for row, text in detected.rows[:EXAMPLES]]
    return [Finding("foreign_tokens", "warning", len(detected.rows), meaning, examples)]


def sampled_place(row: Sampled, text: str) -> dict[str, Any]:
    return MatchContext(row.source, row.line, text, 0, 0).shown()
