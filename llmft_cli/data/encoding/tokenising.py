"""Token ids of texts in which only chosen places may become special tokens."""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
# Texts that show whether what stands before them changes their tokens.
PROBES = ("a b", " a", "\n", "\n\na")


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text: their ids, and the characters that each of them stands for."""

    ids: list[int]
    offsets: list[Span]

    def reaching_into(self, span: Span) -> tuple[int, int]:
        """The first token that reaches into a span of characters, and the one after the last."""
        start, stop = span
        first = bisect_right(self.offsets, start, key=lambda offset: offset[1])
        return first, bisect_left(self.offsets, stop, lo=first, key=lambda offset: offset[0])

    def start_of(self, index: int) -> int:
        return self.offsets[index][0]


class EncodedTokens(NamedTuple):
    """As `Tokens`, straight from the library: it finds a place without making a Python object of every offset.

    Attributes:
        encoding: of the text after its head.
        head_ids, head: ids and characters of the head, in which nothing is looked for.
    """

    encoding: Encoding
    head_ids: list[int]
    head: int

    @property
    def ids(self) -> list[int]:
        return self.head_ids + self.encoding.ids

    def reaching_into(self, span: Span) -> tuple[int, int]:
        """As `Tokens.reaching_into`, for a span that ends with a whole token."""
        start, stop = span[0] - self.head, span[1] - self.head
        before = len(self.head_ids)
        first, last = self.encoding.char_to_token(start), self.encoding.char_to_token(stop - 1)
        if first is None or last is None:
            # Some tokenizers leave the spaces around a word out of its offsets.
            first, end = Tokens(self.encoding.ids, self.encoding.offsets).reaching_into((start, stop))
            return before + first, before + end
        return before + first, before + last + 1

    def start_of(self, index: int) -> int:
        place = self.encoding.token_to_chars(index - len(self.head_ids))
        return self.head + place[0]  # type: ignore[index]  # None only outside of the encoding


class Tokeniser:
    """A fast tokenizer, and what is known of its special tokens.

    Attributes:
        control: finds the spelling of special tokens in a text.
        control_ids: their ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        special = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control = any_of(token.content for token in special.values())
        self.control_ids = frozenset(special)
        self._controls = {token.content: (number, token) for number, token in special.items()}
        self._heads: dict[str, list[int] | None] = {"": None}
        # Random, so that no text can spell it.
        self._marker = f"\ue0f2{secrets.token_hex(8)}\ue0f3"

    def encode(self, rows: Sequence[tuple[str, Sequence[Span], int]]) -> list[Tokens | EncodedTokens]:
        """The tokens of texts; nothing is added, and only the places that are owned become special tokens.

        Most of the time is spent in the library, on all cores and without Python's lock.

        Args:
            rows: a text, the places where special tokens stand in it, in order, and how many characters it begins
                with that many rows begin with, up to the end of a special token: those are tokenised once.
        """
        plain: dict[int, tuple[list[int], int]] = {}
        for index, (text, owned, head) in enumerate(rows):
            if [match.span() for match in self.control.finditer(text)] == list(owned):
                ids = self._head_ids(text[:head])
                plain[index] = (ids, head) if ids else ([], 0)
        rests = [rows[index][0][head:] for index, (_, head) in plain.items()]
        encodings = iter(self._backend.encode_batch(rests, add_special_tokens=False))
        return [
            EncodedTokens(next(encodings), *plain[index]) if index in plain else self._encode_around(text, owned)
            for index, (text, owned, _) in enumerate(rows)
        ]

    def _head_ids(self, head: str) -> list[int] | None:
        """The ids of a text's head, or None where the rest is tokenised otherwise behind it than alone.

        Such are tokenizers that begin a text with a space, and special tokens that swallow the spaces after them.
        """
        if head not in self._heads:
            alone, *rests = map(self._ids, [head, *PROBES])
            parted = all(self._ids(head + probe) == alone + rest for probe, rest in zip(PROBES, rests, strict=True))
            self._heads[head] = alone if parted else None
        return self._heads[head]

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_around(self, text: str, owned: Sequence[Span]) -> Tokens:
        """As `encode`, the text between the special tokens tokenised on its own: what the tokenizer does inside."""
        tokens = Tokens([], [])
        position = 0
        for start, end in owned:
            number, token = self._controls[text[start:end]]
            start = max(position, len(text[:start].rstrip())) if token.lstrip else start
            end = len(text) - len(text[end:].lstrip()) if token.rstrip else end
            self._append_plain(text, position, start, tokens)
            tokens.ids.append(number)
            tokens.offsets.append((start, end))
            position = end
        self._append_plain(text, position, len(text), tokens)
        return tokens

    def _append_plain(self, text: str, start: int, end: int, tokens: Tokens) -> None:
        """Append the tokens of `text[start:end]`, none of them special.

        Behind a marker token, so that a tokenizer which puts a space before the text's first word
        does not put one here too.
        """
        if start == end:
            return
        marker = self._marker if start else ""
        encoding = self._splitting.encode(marker + text[start:end], add_special_tokens=False)
        skipped = 1 if marker else 0
        shift = start - len(marker)
        tokens.ids.extend(encoding.ids[skipped:])
        tokens.offsets.extend((first + shift, last + shift) for first, last in encoding.offsets[skipped:])

    @cached_property
    def _backend(self) -> Tokenizer:
        """A copy of the tokenizer that neither pads nor cuts, whatever others ask of the original."""
        return self._copy()

    @cached_property
    def _splitting(self) -> Tokenizer:
        """A copy of the tokenizer that knows no special tokens, but the marker."""
        from tokenizers import AddedToken

        copy = self._copy()
        copy.add_tokens([AddedToken(self._marker, normalized=False)])
        copy.encode_special_tokens = True
        return copy

    def _copy(self) -> Tokenizer:
        from tokenizers import Tokenizer

        copy = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        return copy


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of some texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
