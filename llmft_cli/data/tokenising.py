"""Token ids of a text in which only chosen places may become special tokens."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


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

    def encode(self, text: str, owned: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """Ids and character offsets; nothing is added, and only the places `owned` become special tokens."""
        if owned != [match.span() for match in self.control.finditer(text)]:
            return self._encode_around(text, owned)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=False)
        return encoding["input_ids"], encoding["offset_mapping"]

    def _encode_around(self, text: str, owned: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """As `encode`, the text between the special tokens tokenised on its own: what the tokenizer does inside."""
        ids: list[int] = []
        offsets: list[Span] = []
        position = 0
        for start, end in owned:
            number, token = self._controls[text[start:end]]
            start = max(position, len(text[:start].rstrip())) if token.lstrip else start
            end = len(text) - len(text[end:].lstrip()) if token.rstrip else end
            self._append_plain(text, position, start, ids, offsets)
            ids.append(number)
            offsets.append((start, end))
            position = end
        self._append_plain(text, position, len(text), ids, offsets)
        return ids, offsets

    def _append_plain(self, text: str, start: int, end: int, ids: list[int], offsets: list[Span]) -> None:
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
        ids += encoding.ids[skipped:]
        offsets += [(first + shift, last + shift) for first, last in encoding.offsets[skipped:]]

    @cached_property
    def _splitting(self) -> Tokenizer:
        """A copy of the tokenizer that knows no special tokens, but the marker."""
        from tokenizers import AddedToken, Tokenizer

        copy = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        copy.add_tokens([AddedToken(self._marker, normalized=False)])
        copy.encode_special_tokens = True
        return copy


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of some texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
