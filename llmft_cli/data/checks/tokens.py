"""Checks on token ids: text tokenised into bytes, and rows with little supervision."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from llmft_cli.data.checks.rows import CheckedRow, Match
from llmft_cli.data.encoding.byte_tokens import BYTE_LEVEL_ALPHABET, FALLBACK_BYTES

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

# A single emoji or foreign word has a few such tokens; a fifth of a row means that its script is not covered.
BYTE_SHARE = 0.2
# With one supervised token in 20, a row costs its full length and teaches little.
SUPERVISED_SHARE = 0.05
# UTF-8 uses 243 of the 256 bytes, and a byte-level vocabulary may lack some control characters; others have far fewer.
BYTE_LEVEL = 200


def byte_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that are only a part of a character, for tokenizers with bytes in their vocabulary.

    For byte-level BPE, those whose bytes are not whole characters; for SentencePiece, `<0x80>` to `<0xFF>`.
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
        # Not in the byte alphabet: the token is plain text.
        return False
    return False


def rows_in_bytes(rows: Sequence[CheckedRow], not_ascii: Iterable[int], is_byte: NDArray[numpy.bool_]) -> Iterator[Match]:
    """Rows in which at least a fifth of the tokens are parts of characters.

    Args:
        not_ascii: the numbers of the rows to check.
        is_byte: for every token id whether it is a byte token.
    """
    import numpy

    candidates = [number for number in not_ascii if may_be_in_bytes(rows[number])]
    if not candidates or not len(is_byte):
        return
    id_lists = [rows[number].input_ids for number in candidates]
    # `array` converts a list three times as fast as numpy.
    ids = [numpy.asarray(array("q", row) if isinstance(row, list) else row) for row in id_lists]
    lengths = numpy.array([len(row) for row in ids])
    table = is_byte[numpy.minimum(numpy.concatenate(ids), len(is_byte) - 1)]
    counts = numpy.add.reduceat(table, numpy.cumsum(lengths) - lengths, dtype=numpy.int64)
    for place in numpy.flatnonzero(counts >= BYTE_SHARE * lengths).tolist():
        text = next(text for text in rows[candidates[place]].texts if not text.isascii())
        start = next(position for position, character in enumerate(text) if not character.isascii())
        yield Match(candidates[place], text, start, start)


def may_be_in_bytes(row: CheckedRow) -> bool:
    """A fast upper bound: a character of n bytes gives at most n tokens, and n is at most twice n - 1."""
    further = sum(len(text.encode("utf-8", "surrogatepass")) - len(text) for text in row.texts if not text.isascii())
    return 2 * further >= BYTE_SHARE * len(row.input_ids) > 0


def mostly_masked(rows: Sequence[CheckedRow]) -> Iterator[Match]:
    for number, row in enumerate(rows):
        if row.supervised < SUPERVISED_SHARE * len(row.input_ids):
            yield Match(number, row.texts[-1] if row.texts else "", 0, 0)
