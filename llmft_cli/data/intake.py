"""Taking rows in: each tokenised, masked, fitted to the length, checked, and written to disk.

Rows flow in chunks, so that memory does not grow with the data. While the tokenizer works on one
chunk, on all cores and without Python's lock, the one before is masked and checked here. Chunks
stay in order, so the result does not depend on how many cores there are.
"""

from __future__ import annotations

import gc
import hashlib
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
from llmft_cli.data.encoding.encoder import ConversationEncoder, Encoded
from llmft_cli.data.encoding.overlength import OverlengthLosses, apply_policy, slice_row, token_windows
from llmft_cli.data.encoding.tokenising import EncodedTokens, Tokens
from llmft_cli.data.forms.formats import Conversation, Document, RowError, Tokenised
from llmft_cli.data.inputs import Chunk, Input, Parsed, chunks
from llmft_cli.data.near_duplicates import NearDuplicates
from llmft_cli.data.reading.rows import BadRow
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
    """Rows that are left out: each on a line of rejected.jsonl, the bad ones counted by reason.

    Attributes:
        reasons: how many rows were bad, and why.
        places: the first places of each reason, as `file:line`.
        first: the first row that was left out, a bad one where there is one.
    """

    def __init__(self, folder: Path) -> None:
        # A file name that is not UTF-8 holds lone surrogates, which backslashes turn into JSON's own spelling of them.
        self._file = (folder / REJECTED_FILE).open("w", encoding="utf-8", errors="backslashreplace")
        self.reasons: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self.first: BadRow | None = None

    def add(self, row: BadRow, bad: bool) -> None:
        """Write a row down; one that is too long is not bad."""
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


class Part(NamedTuple):
    """What is written of a row: all of it, or a stretch of one that was too long.

    Attributes:
        text: by which near-duplicates are found.
        number: from 0.
        together: whether all parts of the row belong on one side of the split.
    """

    encoded: Encoded
    text: str
    number: int = 0
    together: bool = False


@dataclass
class Intake:
    """The rows taken in, and what became of the others.

    Attributes:
        prompts: for each kept row a number that rows with the same prompt share.
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
    prompts: array[int] = field(default_factory=lambda: array("q"))
    _sources: dict[str, int] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)

    @property
    def source_names(self) -> list[str]:
        """The files that rows came from, by their number."""
        return list(self._sources)

    @property
    def read(self) -> int:
        return sum(item.read for item in self.inputs)

    @property
    def bad(self) -> int:
        return self.rejections.reasons.total()

    def reject(self, row: Parsed, reason: str) -> None:
        self.inputs[row.input].rejected += 1
        self.rejections.add(BadRow(row.source, row.line, reason), bad=True)

    def keep(self, row: Parsed, part: Part) -> bool:
        """Write a row to disk, unless the same one is there already; says whether it was written."""
        content = array("i", part.encoded.input_ids).tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest()
        if key in self._seen:
            self.duplicates += 1
            return False
        self._seen.add(key)
        supervised = part.encoded.supervised
        source = self._sources.setdefault(row.source, len(self._sources))
        self.spool.append(row.input, source, row.line, row.example if part.number == 0 else None, content, supervised)
        prompt = f"{row.source}:{row.line}".encode() if part.together else content[: 4 * supervised[0][0]]
        self.prompts.append(prompt_key(prompt, len(self.spool)))
        self.inputs[row.input].kept += 1
        return True

    def finish(self) -> None:
        """Called when all rows are taken in, and before any is read again."""
        self.spool.finish()
        self._seen.clear()


def prompt_key(prompt: bytes, row: int) -> int:
    """A number that rows with the same prompt share; a row without one has a number of its own."""
    if len(prompt) <= 4:  # a single token: what a document begins with
        return -row
    return int.from_bytes(hashlib.blake2b(prompt, digest_size=8).digest(), "big") >> 1


def seen_by_checks(row: Parsed, part: Part, supervised: int) -> CheckedRow:
    """What the checks look at: a conversation's messages, or a document's text; of token ids there is none."""
    messages = row.example.messages if isinstance(row.example, Conversation) else []
    texts = [part.text] if isinstance(row.example, Document) else [message["content"] for message in messages]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    return CheckedRow(row.source, row.line, texts, answers, part.encoded.input_ids, supervised)


def take_in(intake: Intake, encoder: ConversationEncoder, config: Config, reporter: Reporter) -> None:
    """Read and encode every row; the bad, over-long and repeated ones are set aside and counted.

    Raises:
        DataError: a source as a whole cannot be read, or a row is too long and shall not be.
    """
    total = sum(item.size_bytes for item in intake.inputs)
    with (
        few_collections(),
        reporter.track("reading", total=total, unit="bytes") as advance,
        ThreadPoolExecutor(1) as tokenizer,
    ):
        waiting: deque[tuple[Chunk, Future[list[AnyTokens]]]] = deque()
        for chunk in chunks(intake.inputs, encoder, config, advance):
            waiting.append((chunk, tokenizer.submit(encoder.tokenise, chunk.rendered_rows)))
            if len(waiting) > CHUNKS_AHEAD:
                done, tokens = waiting.popleft()
                finish_chunk(done, tokens.result(), intake, encoder, config)
        for done, tokens in waiting:
            finish_chunk(done, tokens.result(), intake, encoder, config)
    intake.finish()


@contextmanager
def few_collections() -> Iterator[None]:
    """Look seldom for reference cycles: rows make none, and the search among all that is alive took a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECTION_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def finish_chunk(
    chunk: Chunk, tokens: Sequence[AnyTokens], intake: Intake, encoder: ConversationEncoder, config: Config
) -> None:
    """Mask, fit, write and check the rows of a chunk."""
    remaining = iter(tokens)
    checked: list[CheckedRow] = []
    texts: list[str] = []
    for row in chunk.rows:
        try:
            if row.error:
                raise RowError(row.error)
            parts = parts_of(row, next(remaining) if row.rendered else None, intake, encoder, config)
        except RowError as error:
            intake.reject(row, str(error))
            continue
        intake.forms[row.form] += 1
        for part in parts:
            if intake.keep(row, part):
                checked.append(seen_by_checks(row, part, intake.spool.supervised[-1]))
                texts.append(part.text)
    intake.checks.look_at(checked)
    if intake.near_duplicates:
        intake.near_duplicates.add(texts)


def parts_of(
    row: Parsed, tokens: AnyTokens | None, intake: Intake, encoder: ConversationEncoder, config: Config
) -> Sequence[Part]:
    """The rows that a row becomes: one, none, or as many as its length makes of it.

    Raises:
        RowError: it cannot be used.
    """
    if isinstance(row.example, Tokenised):
        encoded = encoder.from_token_ids(row.example)
    else:
        assert row.rendered is not None
        assert tokens is not None
        if isinstance(row.example, Document):
            parts = document_parts(row.example, tokens, encoder, config.max_seq_length)
            intake.split_documents += len(parts) > 1
            return parts
        encoded = encoder.mask(row.rendered, tokens)
    rows = fitting(row, encoded, intake, config)
    if len(rows) == 1 and isinstance(row.example, Conversation):
        # Without the system message, which many rows share.
        spoken = [message["content"] for message in row.example.messages if message["role"] != "system"]
        return [Part(rows[0], "\n".join(spoken))]
    return [Part(encoded, " ".join(map(str, encoded.input_ids)), number, len(rows) > 1) for number, encoded in enumerate(rows)]


def fitting(row: Parsed, encoded: Encoded, intake: Intake, config: Config) -> list[Encoded]:
    """A row as it is, or what the policy makes of one that is too long."""
    length = len(encoded.input_ids)
    if length <= config.max_seq_length:
        return [encoded]
    reason = f"{length} tokens, more than --max-seq-length {config.max_seq_length}"
    if config.on_overlength == "error":
        raise DataError(
            f"{row.source} line {row.line}: {reason}", "raise --max-seq-length, or see --on-overlength drop, truncate and split"
        )
    rows = apply_policy(encoded, config.max_seq_length, config.on_overlength, intake.losses)
    if not rows:
        intake.rejections.add(BadRow(row.source, row.line, reason), bad=False)
    return rows


def document_parts(document: Document, tokens: AnyTokens, encoder: ConversationEncoder, capacity: int) -> list[Part]:
    """A text as rows of at most `capacity` tokens with the text of each; all but a row's first token is supervised.

    Raises:
        RowError: there is nothing to learn.
    """
    ids = encoder.with_bos_and_eos(tokens.ids)
    whole = Encoded(ids, [(1, len(ids))])
    spans = token_windows(len(ids), capacity)
    if not spans:
        raise RowError("the text is a single token, with nothing to learn")
    if len(spans) == 1:
        return [Part(slice_row(whole, spans[0]), document.text)]
    size = -(-len(document.text) // len(spans))  # for the checks, about the text of each part is enough
    texts = [document.text[size * number : size * (number + 1)] for number in range(len(spans))]
    return [Part(slice_row(whole, span), text) for span, text in zip(spans, texts, strict=True)]
