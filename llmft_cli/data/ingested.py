"""What ingestion collects: the rows on disk, and counts of those that are left out or kept in part."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llmft_cli.data.checks import Checks
from llmft_cli.data.cures.sampled import SampledRows
from llmft_cli.data.encoding.encoder import Encoded
from llmft_cli.data.encoding.overlength import OverlengthLosses
from llmft_cli.data.forms.examples import Conversation
from llmft_cli.data.inputs import Input, ParsedRow
from llmft_cli.data.key_counts import KeyCounts
from llmft_cli.data.near_duplicates import NearDuplicates
from llmft_cli.data.reading.rows import BadRow
from llmft_cli.data.row_keys import content_keys, grouping_key
from llmft_cli.data.store import REJECTED_FILE, RowSpool

EXAMPLES_PER_REASON = 3
MOST_REASONS = 1000
OTHER_REASONS = "other reasons"


class Rejections:
    """Rows that are not used: each is written to rejected.jsonl, and bad ones are counted by reason.

    Attributes:
        reasons: number of bad rows by reason.
        places: the first places of each reason, as `file:line`.
        first: the first row that was not used, a bad one if there is any.
    """

    def __init__(self, folder: Path) -> None:
        # A file name that is not UTF-8 contains lone surrogates; backslashreplace turns them into JSON escapes.
        self._file = (folder / REJECTED_FILE).open("w", encoding="utf-8", errors="backslashreplace")
        self.reasons: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self.first: BadRow | None = None

    def add(self, row: BadRow, bad: bool) -> None:
        """Record a row; `bad` is False for rows that are only too long."""
        self._file.write(json.dumps(vars(row), ensure_ascii=False) + "\n")
        if self.first is None or (bad and not self.reasons):
            self.first = row
        if bad:
            reason = row.reason if row.reason in self.places or len(self.places) < MOST_REASONS else OTHER_REASONS
            self.reasons[reason] += 1
            places = self.places.setdefault(reason, [])
            if len(places) < EXAMPLES_PER_REASON:
                places.append(f"{row.source}:{row.line}")

    def __enter__(self) -> Rejections:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


class RowPart(NamedTuple):
    """What is written for a row: the whole row, or a part of one that was too long.

    Attributes:
        text: used to find near-duplicates.
        has_example: whether it stands for the row in what is counted once for each: checks, and held-out prompts.
        prompt: parts with the same prompt, of this row or another, must be on the same side of the split; empty: none.
    """

    encoded: Encoded
    text: str
    has_example: bool = True
    prompt: bytes = b""


@dataclass
class AnswerRows:
    """Conversations whose answers are learned in several rows, and these rows."""

    conversations: int = 0
    rows: int = 0


@dataclass
class Remarks:
    """Kept rows with a remark of the chat template, with the first places."""

    rows: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: ParsedRow, remark: str) -> None:
        self.rows += 1
        if len(self.examples) < EXAMPLES_PER_REASON:
            self.examples.append({"source": row.source, "line": row.line, "excerpt": remark})


@dataclass
class IngestedRows:
    """The ingested rows, and counts of the others.

    Attributes:
        prompts: for each kept row a key that rows with the same prompt share.
        contents: the same for rows with the same tokens, which may differ in what is supervised.
        styles: number of rows that were read back from rendered text, by the style of the template.
    """

    inputs: list[Input]
    spool: RowSpool
    rejections: Rejections
    checks: Checks
    near_duplicates: NearDuplicates | None
    losses: OverlengthLosses = field(default_factory=OverlengthLosses)
    forms: Counter[str] = field(default_factory=Counter)
    ignored_keys: KeyCounts = field(default_factory=KeyCounts)
    styles: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    split_documents: int = 0
    answer_rows: AnswerRows = field(default_factory=AnswerRows)
    samples: SampledRows = field(default_factory=SampledRows)
    unrendered: Remarks = field(default_factory=Remarks)
    other_beginnings: Remarks = field(default_factory=Remarks)
    prompts: array[int] = field(default_factory=lambda: array("q"))
    contents: array[int] = field(default_factory=lambda: array("q"))
    _sources: dict[str, int] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)

    @property
    def source_names(self) -> list[str]:
        """The files that rows came from, by number."""
        return list(self._sources)

    @property
    def read(self) -> int:
        return sum(item.read for item in self.inputs)

    @property
    def kept(self) -> int:
        """Kept rows; those of one conversation's answers count as one."""
        return sum(item.kept for item in self.inputs)

    @property
    def bad(self) -> int:
        return self.rejections.reasons.total()

    def count_form(self, row: ParsedRow) -> None:
        style = row.example.style if isinstance(row.example, Conversation) else ""
        self.forms[f"{row.form} (rendered: {style})" if style else row.form] += 1
        if style:
            self.styles[style] += 1

    def reject(self, row: ParsedRow, reason: str) -> None:
        self.inputs[row.input].rejected += 1
        self.samples.add(row.raw, usable=False)
        self.rejections.add(BadRow(row.source, row.line, reason), bad=True)

    def keep(self, row: ParsedRow, part: RowPart) -> bool:
        """Write a row to disk unless it is a duplicate; returns whether it was written."""
        content = array("i", part.encoded.input_ids).tobytes()
        supervised = part.encoded.supervised
        key, content_key = content_keys(content, supervised)
        if key in self._seen:
            return False
        self._seen.add(key)
        source = self._sources.setdefault(row.source, len(self._sources))
        self.spool.append(row.input, source, row.line, row.example if part.has_example else None, content, supervised)
        self.prompts.append(grouping_key(part.prompt) if part.prompt else -len(self.spool))
        self.contents.append(content_key)
        return True

    def count(self, row: ParsedRow, parts: int, written: int) -> None:
        """Count a row that became some parts, of which those were written that are no duplicates.

        The rows of one conversation's answers count as one.
        """
        if row.rendered and len(row.rendered.rows) > 1:
            self.answer_rows.conversations += min(written, 1)
            self.answer_rows.rows += written
            parts, written = min(parts, 1), min(written, 1)
        self.inputs[row.input].kept += written
        self.duplicates += parts - written
        if row.rendered and row.rendered.left_out:
            self.unrendered.add(row, ", ".join(row.rendered.left_out))
        if row.rendered and row.rendered.beyond:
            self.other_beginnings.add(row, row.rendered.beyond)

    def finish(self) -> None:
        """Called once all rows are ingested, before any is read back."""
        self.spool.finish()
        self._seen.clear()
