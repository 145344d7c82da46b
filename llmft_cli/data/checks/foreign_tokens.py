"""Detects token ids of another tokenizer in a sample of the rows that are given as token ids.

A tokenizer writes one text in one way. Ids of another tokenizer decode to some text too, but this
tokenizer would write that text with other tokens. Measured with the tokenizers of Llama 2 and 3,
Qwen3, Gemma 3, DeepSeek V3 and GPT-2, 7 to 40% differ in English prose and code, and none of its
own. Texts in whole words of other scripts are sometimes missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.data.checks.languages import GOLDEN
from llmft_cli.data.checks.rows import CheckedRow

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SAMPLE = 100
SAMPLED_TOKENS = 512
# The share of tokens that differ, apart from one place of a few tokens in each row, where two texts may have been joined.
DIFFERENT_SHARE = 0.01
JOINED_PLACE = 6
# One odd row is not enough.
LEAST_DIFFERENT = 10
# What bytes decode to that are no character, and how many bytes a character has at most.
REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4
PROBE = "It is 12:30 now, isn't it?\nYes: it is."


class TokenRow(NamedTuple):
    """The beginning of a row of token ids; the rows with the smallest `order` are the sample.

    Attributes:
        edges: where supervised spans begin and end: prompts and answers are often tokenised apart.
    """

    order: int
    source: str
    line: int
    ids: tuple[int, ...]
    edges: tuple[int, ...]


class ForeignTokens(NamedTuple):
    """The sampled rows of sources whose ids are not this tokenizer's, each with its text, and the share of such tokens."""

    rows: list[tuple[TokenRow, str]]
    share: float


def sample(rows: Sequence[CheckedRow]) -> list[TokenRow]:
    """The rows of a batch that may be in the sample, which does not depend on how rows are batched."""
    return smallest([token_row(row) for row in rows if row.edges])


def token_row(row: CheckedRow) -> TokenRow:
    ids = tuple(row.input_ids[:SAMPLED_TOKENS])
    return TokenRow(row.line * GOLDEN & 0xFFFFFFFF, row.source, row.line, ids, tuple(row.edges))


def smallest(rows: list[TokenRow]) -> list[TokenRow]:
    return sorted(rows)[:SAMPLE]


def foreign_tokens(rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase) -> ForeignTokens | None:
    """The rows of those sources in which this tokenizer would write too many tokens otherwise, or None."""
    backend = tokenizer.backend_tokenizer
    probe = encoded(PROBE, backend)
    if not rows or encoded(decoded(probe, backend), backend) != probe:
        return None  # such a tokenizer does not keep every text
    special = frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    found: list[tuple[TokenRow, str]] = []
    different = total = 0
    for source in dict.fromkeys(row.source for row in rows):
        of_source = [row for row in rows if row.source == source]
        differences = [different_runs(row, backend, special) for row in of_source]
        surplus = sum(sum(runs) - min(max(runs, default=0), JOINED_PLACE) for runs in differences)
        tokens = sum(len(row.ids) for row in of_source)
        if surplus >= max(LEAST_DIFFERENT, DIFFERENT_SHARE * tokens):
            found += [(row, decoded(row.ids, backend)) for row in of_source]
            different, total = different + sum(map(sum, differences)), total + tokens
    return ForeignTokens(sorted(found, key=lambda item: item[0][1:3]), different / total) if found else None


def different_runs(row: TokenRow, backend: Tokenizer, special: frozenset[int]) -> list[int]:
    """The lengths of runs of tokens that this tokenizer would not write for the text that they decode to."""
    runs: list[int] = []
    for part in parts_of(row, special):
        whole = without_cut_characters(part, backend)
        again = encoded(decoded(whole, backend), backend)
        if again != list(whole):
            position = 0
            for block in SequenceMatcher(None, whole, again, autojunk=False).get_matching_blocks():
                # Some tokenizers put a space before a text, but not after a special token.
                runs.append(0 if position == 0 and block.a == 1 else block.a - position)
                position = block.a + block.size
    return runs


def without_cut_characters(ids: tuple[int, ...], backend: Tokenizer) -> tuple[int, ...]:
    """Ids without the tokens of a character at either end that a limit of length has cut."""
    further = range(min(LONGEST_CHARACTER, len(ids)))
    parts = (
        (ids[start : len(ids) - stop] for start in further for stop in further) if REPLACEMENT in decoded(ids, backend) else ()
    )
    return next((part for part in parts if REPLACEMENT not in decoded(part, backend)), ids)


def parts_of(row: TokenRow, special: frozenset[int]) -> Iterator[tuple[int, ...]]:
    """The ids between special tokens and supervised edges, which each were tokenised at once."""
    cuts = {0, len(row.ids), *(edge for edge in row.edges if edge < len(row.ids))}
    for place, number in enumerate(row.ids):
        if number in special:
            cuts |= {place, place + 1}
    for start, stop in pairwise(sorted(cuts)):
        if row.ids[start] not in special:
            yield row.ids[start:stop]


def encoded(text: str, backend: Tokenizer) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


def decoded(ids: Sequence[int], backend: Tokenizer) -> str:
    return str(backend.decode(list(ids), skip_special_tokens=False))
