"""What token ids tell of rows: text in pieces of characters, and rows of which little is learned."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from llmft_cli.data.checks.rows import CheckedRow, Hit
from llmft_cli.data.encoding.byte_tokens import BYTE_LEVEL_ALPHABET, FALLBACK_BYTES

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

# A single emoji or foreign word costs a few such tokens anywhere; a fifth of a row is its script.
BYTE_SHARE = 0.2
# Of 20 tokens one is learned from: the row costs what it weighs and teaches little.
SUPERVISED_SHARE = 0.05
# UTF-8 uses 243 of the 256 bytes, and a vocabulary may lack some control characters; one of text has far fewer of the letters.
BYTE_LEVEL = 200


def byte_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that hold a piece of a character only, of a tokenizer that falls back to bytes.

    Of a byte-level BPE those whose bytes are no whole characters, of SentencePiece `<0x80>` to `<0xFF>`.
    """
    vocabulary = tokenizer.get_vocab()
    if all(token in vocabulary for token in FALLBACK_BYTES):
        return frozenset(vocabulary[token] for token, byte in FALLBACK_BYTES.items() if byte >= 0x80)
    if sum(character in vocabulary for character in BYTE_LEVEL_ALPHABET) < BYTE_LEVEL:
        return frozenset()
    added = tokenizer.get_added_vocab()
    return frozenset(
        number for token, number in vocabulary.items() if not token.isascii() and token not in added and in_pieces(token)
    )


def in_pieces(token: str) -> bool:
    try:
        bytes(BYTE_LEVEL_ALPHABET[character] for character in token).decode()
    except UnicodeDecodeError:
        return True
    except KeyError:
        # Not of the alphabet of bytes: the token is text as it stands.
        return False
    return False


def rows_in_bytes(rows: Sequence[CheckedRow], not_ascii: Iterable[int], is_byte: NDArray[numpy.bool_]) -> Iterator[Hit]:
    """Rows of which a fifth of the tokens or more are pieces of characters.

    Args:
        not_ascii: the numbers of the rows that can be of that kind.
        is_byte: for every token whether it is one.
    """
    import numpy

    foreign = [number for number in not_ascii if may_be_in_bytes(rows[number])]
    if not foreign or not len(is_byte):
        return
    given = [rows[number].input_ids for number in foreign]
    # `array` reads a list three times as fast as numpy does.
    ids = [numpy.asarray(array("q", row) if isinstance(row, list) else row) for row in given]
    lengths = numpy.array([len(row) for row in ids])
    table = is_byte[numpy.minimum(numpy.concatenate(ids), len(is_byte) - 1)]
    counts = numpy.add.reduceat(table, numpy.cumsum(lengths) - lengths, dtype=numpy.int64)
    for place in numpy.flatnonzero(counts >= BYTE_SHARE * lengths).tolist():
        text = next(text for text in rows[foreign[place]].texts if not text.isascii())
        start = next(position for position, character in enumerate(text) if not character.isascii())
        yield Hit(foreign[place], text, start, start)


def may_be_in_bytes(row: CheckedRow) -> bool:
    """A character of n bytes makes n tokens at most, and n is at most twice the n - 1 bytes that follow its first."""
    further = sum(len(text.encode("utf-8", "surrogatepass")) - len(text) for text in row.texts if not text.isascii())
    return 2 * further >= BYTE_SHARE * len(row.input_ids) > 0


def mostly_masked(rows: Sequence[CheckedRow]) -> Iterator[Hit]:
    for number, row in enumerate(rows):
        if row.supervised < SUPERVISED_SHARE * len(row.input_ids):
            yield Hit(number, row.texts[-1] if row.texts else "", 0, 0)
