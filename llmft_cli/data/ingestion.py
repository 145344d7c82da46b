"""Ingests rows: each is tokenised, masked, fitted to the maximum length, checked, and written to disk.

Rows are processed in chunks, so memory does not grow with the data. While the tokenizer works on
one chunk (on all cores, without the GIL), the previous one is masked and checked. Chunks stay in
order, so the result does not depend on the number of cores.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmft_cli.base.errors import DataError
from llmft_cli.data.checks import CheckedRow
from llmft_cli.data.encoding.encoder import ConversationEncoder, Encoded
from llmft_cli.data.encoding.overlength import apply_policy, slice_row, token_windows, turn_starts
from llmft_cli.data.encoding.rendered import RenderedRow
from llmft_cli.data.encoding.tokenising import EncodedTokens, Tokens
from llmft_cli.data.forms.formats import Conversation, Document, RowError, Tokenised
from llmft_cli.data.ingested import IngestedRows, RowPart
from llmft_cli.data.inputs import Chunk, ParsedRow, chunks
from llmft_cli.data.reading.rows import BadRow
from llmft_cli.data.row_keys import prompt_of, unique_key

if TYPE_CHECKING:
    from llmft_cli.base.reporter import Reporter
    from llmft_cli.settings.config import Config

CHUNKS_AHEAD = 2
COLLECTION_THRESHOLD = 200_000
AnyTokens = Tokens | EncodedTokens


def checked_row(row: ParsedRow, part: RowPart) -> CheckedRow:
    """The input of the checks: a conversation's messages or a document's text; rows of token ids have neither."""
    messages = row.example.messages if isinstance(row.example, Conversation) else []
    texts = [part.text] if isinstance(row.example, Document) else [message["content"] for message in messages]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    supervised = sum(stop - start for start, stop in part.encoded.supervised)
    edges = [edge for span in part.encoded.supervised for edge in span] if isinstance(row.example, Tokenised) else ()
    return CheckedRow(row.source, row.line, texts, answers, part.encoded.input_ids, supervised, edges)


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
        for chunk in chunks(ingested.inputs, encoder, config, advance, reporter.note):
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
    gc.freeze()  # what the libraries have made stays
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def finish_chunk(
    chunk: Chunk, tokens: Sequence[AnyTokens], ingested: IngestedRows, encoder: ConversationEncoder, config: Config
) -> None:
    """Mask, fit, write and check the rows of a chunk."""
    place = 0
    checked: list[CheckedRow] = []
    texts: list[str] = []
    for row in chunk.rows:
        try:
            if row.error:
                raise RowError(row.error)
            start, place = place, place + (len(row.rendered.rows) if row.rendered else 0)
            parts = row_parts(row, tokens[start:place], ingested, encoder, config)
        except RowError as error:
            ingested.reject(row, str(error))
            continue
        ingested.count_form(row)
        if row.ignored:
            ingested.ignored_keys.add(row.ignored)
        written = [part for part in parts if ingested.keep(row, part)]
        texts += [part.text for part in written]
        checked += [checked_row(row, part) for part in written if part.has_example or isinstance(row.example, Document)]
        ingested.count(row, len(parts), len(written))
        ingested.samples.add(row.raw, usable=bool(parts))
    ingested.checks.look_at(checked)
    if ingested.near_duplicates:
        ingested.near_duplicates.add(texts)


def row_parts(
    row: ParsedRow, tokens: Sequence[AnyTokens], ingested: IngestedRows, encoder: ConversationEncoder, config: Config
) -> Sequence[RowPart]:
    """What to write for a row: all of it, nothing, or several parts if it is too long or its answers need rows of their own.

    Args:
        tokens: of each rendered row.

    Raises:
        RowError: the row cannot be used.
    """
    if isinstance(row.example, Document):
        parts = document_parts(row.example, tokens[0], encoder, config.max_seq_length)
        ingested.split_documents += len(parts) > 1
        return parts
    rendered = row.rendered.rows if row.rendered else []
    if isinstance(row.example, Tokenised):
        encoded = [encoder.from_token_ids(row.example)]
    else:
        encoded = [encoder.mask(*pair) for pair in zip(rendered, tokens, strict=True)]
    prompt = prompt_of(rendered[0] if rendered else None, encoded[0])
    if len(encoded) == 1 and isinstance(row.example, Conversation) and len(encoded[0].input_ids) <= config.max_seq_length:
        return [RowPart(encoded[0], spoken_text(row.example), prompt=prompt)]  # nearly every row
    places: list[tuple[RenderedRow, AnyTokens] | None] = [*zip(rendered, tokens, strict=True)] or [None]
    rows = [
        part
        for whole, place in zip(encoded, places, strict=True)
        for part in fit_to_length(row, whole, place, ingested, config)
    ]
    if len(rows) == 1 and isinstance(row.example, Conversation):
        return [RowPart(rows[0], spoken_text(row.example), prompt=prompt)]
    if len(rows) > 1:  # the parts of a row stay together even if it has no prompt
        prompt = prompt or f"{row.source}:{row.line}".encode("utf-8", "surrogateescape")
    last = len(rows) - 1  # the longest context, which other conversations share least
    if rows and len(rendered) > 1 and isinstance(row.example, Conversation):
        # Near-duplicates are conversations: the other rows have a word that no other row has.
        texts = [f"{unique_key(row.source, row.line, number):x}" for number in range(last)] + [spoken_text(row.example)]
    else:
        texts = [" ".join(map(str, part.input_ids)) for part in rows]
    return [RowPart(part, text, part is rows[last], prompt) for part, text in zip(rows, texts, strict=True)]


def spoken_text(conversation: Conversation) -> str:
    """What is said in a conversation, without the system message, which many rows share."""
    return "\n".join(message["content"] for message in conversation.messages if message["role"] != "system")


def fit_to_length(
    row: ParsedRow, encoded: Encoded, place: tuple[RenderedRow, AnyTokens] | None, ingested: IngestedRows, config: Config
) -> list[Encoded]:
    """The row itself, or what the overlength policy makes of it.

    Args:
        place: its text and tokens, in which its turns are found; None for a row that is given as token ids.
    """
    length = len(encoded.input_ids)
    if length <= config.max_seq_length:
        return [encoded]
    reason = f"{length} tokens, more than --max-seq-length {config.max_seq_length}"
    if config.on_overlength == "error":
        raise DataError(
            f"{row.source} line {row.line}: {reason}", "raise --max-seq-length, or use --on-overlength drop, truncate or split"
        )
    turns = turn_starts(*place) if place else ()
    rows = apply_policy(encoded, config.max_seq_length, config.on_overlength, ingested.losses, turns)
    if not rows:
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
