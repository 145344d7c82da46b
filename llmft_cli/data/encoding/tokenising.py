"""Tokenises texts in which only given spans may become special tokens."""

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
# Texts whose tokens may change with the text before them.
PROBES = ("a b", " a", "\n", "\n\na")


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text: their ids, and the character span of each."""

    ids: list[int]
    offsets: list[Span]

    def overlapping(self, span: Span) -> tuple[int, int]:
        """The span of the tokens that overlap a span of characters."""
        start, stop = span
        first = bisect_right(self.offsets, start, key=lambda offset: offset[1])
        return first, bisect_left(self.offsets, stop, lo=first, key=lambda offset: offset[0])

    def start_of(self, index: int) -> int:
        return self.offsets[index][0]


class EncodedTokens(NamedTuple):
    """Like `Tokens`, but looks up positions in the library instead of making a Python object of every offset.

    Attributes:
        encoding: of the text after the shared prefix.
        prefix_ids, prefix_length: ids and number of characters of the prefix, which has no learned spans.
    """

    encoding: Encoding
    prefix_ids: list[int]
    prefix_length: int

    @property
    def ids(self) -> list[int]:
        return self.prefix_ids + self.encoding.ids

    def overlapping(self, span: Span) -> tuple[int, int]:
        """As `Tokens.overlapping`, for a span that ends with a whole token."""
        start, stop = span[0] - self.prefix_length, span[1] - self.prefix_length
        before = len(self.prefix_ids)
        first, last = self.encoding.char_to_token(start), self.encoding.char_to_token(stop - 1)
        if first is None or last is None:
            # Some tokenizers exclude the spaces around a word from its offsets.
            first, end = Tokens(self.encoding.ids, self.encoding.offsets).overlapping((start, stop))
            return before + first, before + end
        return before + first, before + last + 1

    def start_of(self, index: int) -> int:
        place = self.encoding.token_to_chars(index - len(self.prefix_ids))
        return self.prefix_length + place[0]  # type: ignore[index]  # None only outside the encoding


class Tokeniser:
    """A fast tokenizer and its special tokens.

    Attributes:
        control: finds the texts of special tokens.
        control_ids: ids of the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        special = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.control = any_of(token.content for token in special.values())
        self.control_ids = frozenset(special)
        self._controls = {token.content: (number, token) for number, token in special.items()}
        self._prefixes: dict[str, list[int] | None] = {"": None}
        # Random, so that no text can contain it.
        self._marker = f"\ue0f2{secrets.token_hex(8)}\ue0f3"

    def encode(self, rows: Sequence[tuple[str, Sequence[Span], int]]) -> list[Tokens | EncodedTokens]:
        """The tokens of texts. Nothing is added, and only the given spans become special tokens.

        Most of the time is spent in the library, which uses all cores and releases the GIL.

        Args:
            rows: each a text, the spans of its special tokens in order, and the length of the prefix that it
                shares with many rows and that ends with a special token: each prefix is tokenised only once.
        """
        plain: dict[int, tuple[list[int], int]] = {}
        for index, (text, special_spans, prefix) in enumerate(rows):
            if [match.span() for match in self.control.finditer(text)] == list(special_spans):
                ids = self._prefix_ids(text[:prefix])
                plain[index] = (ids, prefix) if ids else ([], 0)
        rests = [rows[index][0][prefix:] for index, (_, prefix) in plain.items()]
        encodings = iter(self._backend.encode_batch(rests, add_special_tokens=False))
        return [
            EncodedTokens(next(encodings), *plain[index]) if index in plain else self._encode_around(text, special_spans)
            for index, (text, special_spans, _) in enumerate(rows)
        ]

    def _prefix_ids(self, prefix: str) -> list[int] | None:
        """The ids of a shared prefix, or None if it changes the tokens of the text after it.

        That happens with tokenizers that prepend a space to a text, and special tokens that absorb following spaces.
        """
        if prefix not in self._prefixes:
            alone, *rests = map(self._ids, [prefix, *PROBES])
            separable = all(self._ids(prefix + probe) == alone + rest for probe, rest in zip(PROBES, rests, strict=True))
            self._prefixes[prefix] = alone if separable else None
        return self._prefixes[prefix]

    def _ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_around(self, text: str, special_spans: Sequence[Span]) -> Tokens:
        """As `encode`, for one text: tokenises the parts between special tokens separately, as tokenizers do internally."""
        tokens = Tokens([], [])
        position = 0
        for start, end in special_spans:
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

        The text follows a marker token, so that a tokenizer that prepends a space to a text
        does not add one here.
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
        """A copy of the tokenizer that neither pads nor truncates, whatever the original is set to."""
        return self._copy()

    @cached_property
    def _splitting(self) -> Tokenizer:
        """A copy of the tokenizer whose only special token is the marker."""
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
    """A pattern that matches any of the texts, longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
