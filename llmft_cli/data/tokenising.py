"""Token ids of texts in which only chosen places may become special tokens."""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


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


@dataclass(frozen=True)
class EncodedTokens:
    """As `Tokens`, straight from the library: it finds a place without making a Python object of every offset."""

    encoding: Encoding

    @property
    def ids(self) -> list[int]:
        return self.encoding.ids

    def reaching_into(self, span: Span) -> tuple[int, int]:
        """As `Tokens.reaching_into`, for a span that ends with a whole token."""
        first, last = self.encoding.char_to_token(span[0]), self.encoding.char_to_token(span[1] - 1)
        if first is None or last is None:
            # Some tokenizers leave the spaces around a word out of its offsets.
            return Tokens(self.encoding.ids, self.encoding.offsets).reaching_into(span)
        return first, last + 1

    def start_of(self, index: int) -> int:
        return self.encoding.token_to_chars(index)[0]  # type: ignore[index]  # None only outside of the encoding


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
        # Random, so that no text can spell it.
        self._marker = f"\ue0f2{secrets.token_hex(8)}\ue0f3"

    def encode(self, texts: Sequence[str], owned: Sequence[Sequence[Span]]) -> list[Tokens | EncodedTokens]:
        """The tokens of each text; nothing is added, and only the places `owned` become special tokens.

        Most of the time is spent in the library, on all cores and without Python's lock.

        Args:
            owned: for each text where special tokens stand, in order.
        """
        plain = [
            index
            for index, (text, places) in enumerate(zip(texts, owned, strict=True))
            if [match.span() for match in self.control.finditer(text)] == list(places)
        ]
        encodings = self._backend.encode_batch([texts[index] for index in plain], add_special_tokens=False)
        found: dict[int, Tokens | EncodedTokens] = dict(zip(plain, map(EncodedTokens, encodings), strict=True))
        return [found.get(index) or self._encode_around(texts[index], owned[index]) for index in range(len(texts))]

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
