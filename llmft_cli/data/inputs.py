"""The inputs of prepare: each source with its weight and row limit, and its rows, parsed and rendered in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from llmft_cli.base.errors import ConfigError, DataError
from llmft_cli.data.cures.sampled import MOST_UNUSABLE
from llmft_cli.data.encoding.rendered import RenderedExample, RenderedRow
from llmft_cli.data.forms.conversations.merging import merged
from llmft_cli.data.forms.formats import Conversation, Document, Example, RowError, Tokenised, parse, parse_columns
from llmft_cli.data.forms.ignored_keys import ignored_keys
from llmft_cli.data.reading.readers import read
from llmft_cli.data.reading.rows import BadRow, Row, Source
from llmft_cli.data.reading.sources import STDIN, find_sources
from llmft_cli.settings.parsers import AUTO

if TYPE_CHECKING:
    from llmft_cli.data.encoding.encoder import ConversationEncoder
    from llmft_cli.settings.config import Config

CHUNK_ROWS = 2048
CHUNK_CHARACTERS = 1 << 22


@dataclass
class Input:
    """A source as the user named it, with its files.

    Attributes:
        weight: how often its rows are used.
        max_rows: how many rows to read at most.
        read, kept, rejected: rows so far.
    """

    name: str
    sources: list[Source]
    weight: float = 1.0
    max_rows: int | None = None
    read: int = 0
    kept: int = 0
    rejected: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(source.size_bytes for source in self.sources)


@dataclass
class ParsedRow:
    """A parsed and rendered row, or the reason why it cannot be used.

    Attributes:
        ignored: the keys that its format does not read, from `ignored_keys`.
        raw: as it was read; only the first rows keep it.
    """

    input: int
    source: str
    line: int
    form: str = ""
    example: Example | None = None
    rendered: RenderedExample | None = None
    error: str = ""
    ignored: tuple[str, ...] = ()
    raw: Row | None = None


@dataclass
class Chunk:
    """Rows that are tokenised together."""

    rows: list[ParsedRow] = field(default_factory=list)
    characters: int = 0

    def add(self, row: ParsedRow) -> None:
        self.rows.append(row)
        self.characters += sum(len(part.text) for part in row.rendered.rows) if row.rendered else 0

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= CHUNK_ROWS or self.characters >= CHUNK_CHARACTERS

    @property
    def rendered_rows(self) -> list[RenderedRow]:
        return [part for row in self.rows if row.rendered for part in row.rendered.rows]


def find_inputs(names: Sequence[str], config: Config) -> list[Input]:
    """The named sources, each with its weight and row limit.

    Raises:
        DataError: a source does not exist or cannot contain rows.
        ConfigError: the weights or limits are not one for each source.
    """
    weights = one_each("--weights", config.weights or "1", len(names))
    if names.count(STDIN) > 1:
        raise DataError("standard input (-) is given twice but can be read only once", "name it once")
    unlimited: list[float | None] = [None] * len(names)
    caps = one_each("--max-rows", config.max_rows, len(names)) if config.max_rows else unlimited
    encoding = "" if config.encoding == AUTO else config.encoding
    named = frozenset(parse_columns(config.columns).values()) if config.columns else frozenset[str]()
    return [
        Input(
            name,
            [replace(source, columns=named) for source in find_sources([name], encoding)],
            weight,
            None if cap is None else int(cap),
        )
        for name, weight, cap in zip(names, weights, caps, strict=True)
    ]


def one_each(flag: str, text: str, sources: int) -> list[float]:
    """The numbers of a setting, one for each source; a single one is used for all.

    Raises:
        ConfigError: they are too few or too many.
    """
    values = [float(part) for part in text.split(",")]
    if len(values) not in (1, sources):
        raise ConfigError(f"{flag} has {len(values)} numbers for {sources} sources", "give one for all, or one for each")
    return values * sources if len(values) == 1 else values


def chunks(
    inputs: Sequence[Input],
    encoder: ConversationEncoder,
    config: Config,
    consumed: Callable[[int], None],
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Chunk]:
    """All rows in order, parsed and rendered.

    Args:
        consumed, note: as of `read`.

    Raises:
        DataError: a source cannot be read.
    """
    columns = parse_columns(config.columns) if config.columns else None
    told = note if config.encoding == AUTO else lambda text: None
    chunk, unusable = Chunk(), 0
    for number, item in enumerate(inputs):
        rows = chain.from_iterable(read(source, config.dataset_split, consumed, told) for source in item.sources)
        for row in islice(rows, item.max_rows):
            item.read += 1
            parsed = parse_row(number, row, encoder, config, columns)
            unusable += bool(parsed.error)
            if isinstance(row, Row) and (item.read <= MOST_UNUSABLE or (parsed.error and unusable <= MOST_UNUSABLE)):
                parsed.raw = row
            chunk.add(parsed)
            if chunk.is_full:
                yield chunk
                chunk = Chunk()
    if chunk.rows:
        yield chunk


def parse_row(
    number: int, row: Row | BadRow, encoder: ConversationEncoder, config: Config, columns: Mapping[str, str] | None
) -> ParsedRow:
    if isinstance(row, BadRow):
        return ParsedRow(number, row.source, row.line, error=row.reason)
    try:
        name, example = parse(row.value, config.format, columns, config.merge_turns)
        ignored = ignored_keys(row.value, name, columns)
        if isinstance(example, Tokenised):
            return ParsedRow(number, row.source, row.line, name, example, ignored=ignored)
        example, rendered = render(example, encoder)
    except RowError as error:
        return ParsedRow(number, row.source, row.line, error=str(error))
    except RecursionError:  # the limit depends on where in our code it is reached
        return ParsedRow(number, row.source, row.line, error="nested too deeply")
    return ParsedRow(number, row.source, row.line, name, example, rendered, ignored=ignored)


def render(example: Conversation | Document, encoder: ConversationEncoder) -> tuple[Conversation | Document, RenderedExample]:
    """The rendered rows. Calls that the row has as text stay text if the chat template does not render calls.

    Raises:
        RowError: the row cannot be used; the reason names `--merge-turns` where that would keep the row.
    """
    as_text = example.as_text if isinstance(example, Conversation) else None
    try:
        rendered = encoder.rows(example)
        if not (as_text and rendered.left_out):
            return example, rendered
    except RowError as error:
        if not as_text and isinstance(example, Conversation) and can_be_merged(example, encoder):
            raise RowError(f"{error}; --merge-turns would join messages of the same role and keep the row") from error
        if not as_text:
            raise
    return as_text, encoder.rows(as_text)


def can_be_merged(example: Conversation, encoder: ConversationEncoder) -> bool:
    """Whether the row could be used with neighbouring messages of the same role joined."""
    try:
        joined = merged(example)
        if joined.messages == example.messages:
            return False
        encoder.rows(joined)
    except RowError:
        return False
    return True
