"""Ingests rows: each is tokenised, masked, fitted to the maximum length, checked, and written to disk.

Rows are processed in chunks, so memory does not grow with the data. While the tokenizer works on
one chunk (on all cores, without the GIL), the previous one is masked and checked. Chunks stay in
order, so the result does not depend on the number of cores.
"""

from __future__ import annotations

import gc
import json
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.base.errors import DataError
from llmft_cli.data.checks import CheckedRow, Checks
from llmft_cli.data.cures.sampled import SampledRows
from llmft_cli.data.encoding.encoder import ConversationEncoder, Encoded
from llmft_cli.data.encoding.overlength import OverlengthLosses, apply_policy, slice_row, token_windows, turn_starts
from llmft_cli.data.encoding.tokenising import EncodedTokens, Tokens
from llmft_cli.data.forms.formats import Conversation, Document, RowError, Tokenised
from llmft_cli.data.inputs import Chunk, Input, ParsedRow, chunks
from llmft_cli.data.near_duplicates import NearDuplicates
from llmft_cli.data.reading.rows import BadRow
from llmft_cli.data.row_keys import duplicate_key, grouping_key, prompt_of
from llmft_cli.data.store import REJECTED_FILE, RowSpool

if TYPE_CHECKING:
    from llmft_cli.base.reporter import Reporter
    from llmft_cli.settings.config import Config

CHUNKS_AHEAD = 2
COLLECTION_THRESHOLD = 200_000
EXAMPLES_PER_REASON = 3
MOST_REASONS = 1000
OTHER_REASONS = "other reasons"

AnyTokens = Tokens | EncodedTokens


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
        number: of the part, from 0.
        prompt: parts with the same prompt, of this row or another, must be on the same side of the split; empty: none.
    """

    encoded: Encoded
    text: str
    number: int = 0
    prompt: bytes = b""


@dataclass
class IngestedRows:
    """The ingested rows, and counts of the others.

    Attributes:
        prompts: for each kept row a key that rows with the same prompt share.
        contents: the same for rows with the same tokens, which may differ in what is supervised.
    """

    inputs: list[Input]
    spool: RowSpool
    rejections: Rejections
    checks: Checks
    near_duplicates: NearDuplicates | None
    losses: OverlengthLosses = field(default_factory=OverlengthLosses)
    forms: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    split_documents: int = 0
    samples: SampledRows = field(default_factory=SampledRows)
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
    def bad(self) -> int:
        return self.rejections.reasons.total()

    def reject(self, row: ParsedRow, reason: str) -> None:
        self.inputs[row.input].rejected += 1
        self.samples.add(row.raw, usable=False)
        self.rejections.add(BadRow(row.source, row.line, reason), bad=True)

    def keep(self, row: ParsedRow, part: RowPart) -> bool:
        """Write a row to disk unless it is a duplicate; returns whether it was written."""
        content = array("i", part.encoded.input_ids).tobytes()
        supervised = part.encoded.supervised
        key = duplicate_key(content, supervised)
        if key in self._seen:
            self.duplicates += 1
            return False
        self._seen.add(key)
        if part.number == 0:
            self.samples.add(row.raw, usable=True)
        source = self._sources.setdefault(row.source, len(self._sources))
        self.spool.append(row.input, source, row.line, row.example if part.number == 0 else None, content, supervised)
        self.prompts.append(grouping_key(part.prompt) if part.prompt else -len(self.spool))
        self.contents.append(grouping_key(content))
        self.inputs[row.input].kept += 1
        return True

    def finish(self) -> None:
        """Called once all rows are ingested, before any is read back."""
        self.spool.finish()
        self._seen.clear()


def checked_row(row: ParsedRow, part: RowPart, supervised: int) -> CheckedRow:
    """The input of the checks: a conversation's messages or a document's text; rows of token ids have neither."""
    messages = row.example.messages if isinstance(row.example, Conversation) else []
    texts = [part.text] if isinstance(row.example, Document) else [message["content"] for message in messages]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    return CheckedRow(row.source, row.line, texts, answers, part.encoded.input_ids, supervised)


def ingest_rows(ingested: IngestedRows, encoder: ConversationEncoder, config: Config, reporter: Reporter) -> None:
    """Read and encode every row; bad, too long and duplicate rows are counted and left out.

    Raises:
        DataError: a source cannot be read, or a row is too long and the policy is `error`.
    """
    total = sum(item.size_bytes for item in ingested.inputs)
    with (
        fewer_garbage_collections(),
        reporter.track("reading", total=total, unit="bytes") as advance,
        ThreadPoolExecutor(1) as tokenizer,
    ):
        waiting: deque[tuple[Chunk, Future[list[AnyTokens]]]] = deque()
        for chunk in chunks(ingested.inputs, encoder, config, advance):
            waiting.append((chunk, tokenizer.submit(encoder.tokenise, chunk.rendered_rows)))
            if len(waiting) > CHUNKS_AHEAD:
                done, tokens = waiting.popleft()
                finish_chunk(done, tokens.result(), ingested, encoder, config)
        for done, tokens in waiting:
            finish_chunk(done, tokens.result(), ingested, encoder, config)
    ingested.finish()


@contextmanager
def fewer_garbage_collections() -> Iterator[None]:
    """Collect garbage less often: rows create no reference cycles, and collections took a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECTION_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def finish_chunk(
    chunk: Chunk, tokens: Sequence[AnyTokens], ingested: IngestedRows, encoder: ConversationEncoder, config: Config
) -> None:
    """Mask, fit, write and check the rows of a chunk."""
    remaining = iter(tokens)
    checked: list[CheckedRow] = []
    texts: list[str] = []
    for row in chunk.rows:
        try:
            if row.error:
                raise RowError(row.error)
            parts = row_parts(row, next(remaining) if row.rendered else None, ingested, encoder, config)
        except RowError as error:
            ingested.reject(row, str(error))
            continue
        ingested.forms[row.form] += 1
        for part in parts:
            if ingested.keep(row, part):
                checked.append(checked_row(row, part, ingested.spool.supervised[-1]))
                texts.append(part.text)
    ingested.checks.look_at(checked)
    if ingested.near_duplicates:
        ingested.near_duplicates.add(texts)


def row_parts(
    row: ParsedRow, tokens: AnyTokens | None, ingested: IngestedRows, encoder: ConversationEncoder, config: Config
) -> Sequence[RowPart]:
    """What to write for a row: all of it, nothing, or several parts if it is too long.

    Raises:
        RowError: the row cannot be used.
    """
    if isinstance(row.example, Tokenised):
        encoded = encoder.from_token_ids(row.example)
    else:
        assert row.rendered is not None
        assert tokens is not None
        if isinstance(row.example, Document):
            parts = document_parts(row.example, tokens, encoder, config.max_seq_length)
            ingested.split_documents += len(parts) > 1
            return parts
        encoded = encoder.mask(row.rendered, tokens)
    prompt = prompt_of(row.rendered, encoded)
    rows = fit_to_length(row, encoded, tokens, ingested, config)
    if len(rows) == 1 and isinstance(row.example, Conversation):
        # The system message is left out, since many rows share it.
        spoken = [message["content"] for message in row.example.messages if message["role"] != "system"]
        return [RowPart(rows[0], "\n".join(spoken), prompt=prompt)]
    if len(rows) > 1:  # the parts of a row stay together even if it has no prompt
        prompt = prompt or f"{row.source}:{row.line}".encode()
    return [RowPart(part, " ".join(map(str, part.input_ids)), number, prompt) for number, part in enumerate(rows)]


def fit_to_length(
    row: ParsedRow, encoded: Encoded, tokens: AnyTokens | None, ingested: IngestedRows, config: Config
) -> list[Encoded]:
    """The row itself, or what the overlength policy makes of it."""
    length = len(encoded.input_ids)
    if length <= config.max_seq_length:
        return [encoded]
    reason = f"{length} tokens, more than --max-seq-length {config.max_seq_length}"
    if config.on_overlength == "error":
        raise DataError(
            f"{row.source} line {row.line}: {reason}", "raise --max-seq-length, or use --on-overlength drop, truncate or split"
        )
    turns = turn_starts(row.rendered, tokens) if row.rendered and tokens else []
    rows = apply_policy(encoded, config.max_seq_length, config.on_overlength, ingested.losses, turns)
    if not rows:
        ingested.samples.add(row.raw, usable=False)
        if config.on_overlength != "drop":
            reason += f", and no answer is left (--on-overlength {config.on_overlength})"
        ingested.rejections.add(BadRow(row.source, row.line, reason), bad=False)
    return rows


def document_parts(document: Document, tokens: AnyTokens, encoder: ConversationEncoder, capacity: int) -> list[RowPart]:
    """A document as rows of at most `capacity` tokens; all but the first token of each is supervised.

    Raises:
        RowError: there is nothing to learn.
    """
    ids = encoder.with_bos_and_eos(tokens.ids)
    whole = Encoded(ids, [(1, len(ids))])
    spans = token_windows(len(ids), capacity)
    if not spans:
        raise RowError("the text is a single token, with nothing to learn")
    if len(spans) == 1:
        return [RowPart(slice_row(whole, spans[0]), document.text)]
    size = -(-len(document.text) // len(spans))  # the checks need only the approximate text of each part
    texts = [document.text[size * number : size * (number + 1)] for number in range(len(spans))]
    return [RowPart(slice_row(whole, span), text) for span, text in zip(spans, texts, strict=True)]
