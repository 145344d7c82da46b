"""Rows as people see them: the text of their tokens, cut where the loss mask changes and at special tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from llmft_cli.data.encoding.byte_tokens import BYTE_LEVEL_ALPHABET, FALLBACK_BYTES
from llmft_cli.data.forms.examples import IGNORED
from llmft_cli.data.store import SAMPLES_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one kind: supervised or not. A special token is a segment of its own.

    Attributes:
        text: what the tokens stand for. Special tokens are spelled as they are, bytes that
            make no whole character within the segment as `<0xE2>`.
        supervised: the model learns to write these tokens.
        special: this is a special token, and not text that spells one.
        tokens: how many there are.
    """

    text: str
    supervised: bool
    special: bool
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One prepared row to look at.

    Attributes:
        source: the file or data set that the row is from.
        line: where in it.
        split: `train` or `validation`.
        tokens: the row's length.
        supervised: how many of the tokens the model learns to write.
    """

    source: str
    line: int
    split: str
    tokens: int
    supervised: int
    segments: list[Segment]


def sample(
    tokenizer: PreTrainedTokenizerBase, source: str, line: int, split: str, input_ids: Sequence[int], labels: Sequence[int]
) -> Sample:
    """A row with its place, its counts and its text."""
    supervised = sum(label != IGNORED for label in labels)
    return Sample(source, line, split, len(input_ids), supervised, segments(tokenizer, input_ids, labels))


def read_samples(data: Path, count: int) -> list[Sample]:
    """The first of the samples that prepare has kept of a run's data."""
    with (data / SAMPLES_FILE).open(encoding="utf-8") as file:
        found = [json.loads(line) for line in islice(file, count)]
    return [Sample(**{**row, "segments": [Segment(**segment) for segment in row["segments"]]}) for row in found]


def segments(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]) -> list[Segment]:
    """The text of a row's tokens, cut wherever a special token stands or the mask changes.

    Args:
        tokenizer: a fast tokenizer.
        labels: -100 where a token is not supervised.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def kind(position: int) -> tuple[bool, int | None]:
        return labels[position] != IGNORED, position if input_ids[position] in special else None

    decoder = Decoder(tokenizer)
    found = []
    for (supervised, alone), positions in groupby(range(len(input_ids)), kind):
        run = list(positions)
        text = decoder.text(input_ids, run[0], run[-1] + 1)
        found.append(Segment(text, supervised, alone is not None, len(run)))
    return found


class Decoder:
    """The text of any stretch of a row's tokens.

    `decode` alone loses what a stretch begins with, as tokenizers with SentencePiece's spaces drop
    the first, and shows halves of characters as U+FFFD. Here a stretch is decoded behind the
    token before it, and bytes are put together by hand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        steps = decoder_steps(tokenizer)
        self._tokenizer = tokenizer
        self._byte_level = steps == ["ByteLevel"]
        self._byte_fallback = "ByteFallback" in steps
        # Tokens that were added without being special may be spelled in SentencePiece's way.
        self._spelled = {
            number: token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or self._byte_level
        }

    def text(self, input_ids: Sequence[int], start: int, end: int) -> str:
        """The text of the tokens from `start` to `end`."""
        parts = [self._bytes(input_ids[position]) for position in range(start, end)]
        texts = []
        for known, positions in groupby(range(start, end), lambda position: parts[position - start] is not None):
            run = list(positions)
            if known:
                joined = b"".join(part for part in parts[run[0] - start : run[-1] + 1 - start] if part is not None)
                texts.append(text_of_bytes(joined))
            else:
                texts.append(self._decode_behind(input_ids, run[0], run[-1] + 1))
        return "".join(texts)

    def _bytes(self, token_id: int) -> bytes | None:
        """What a token stands for, or None where that depends on the tokens around it."""
        if token_id in self._spelled:
            return self._spelled[token_id].encode()
        token: str = self._tokenizer.convert_ids_to_tokens(token_id)
        if self._byte_level and all(character in BYTE_LEVEL_ALPHABET for character in token):
            return bytes(BYTE_LEVEL_ALPHABET[character] for character in token)
        if self._byte_fallback and token in FALLBACK_BYTES:
            return bytes([FALLBACK_BYTES[token]])
        return None

    def _decode_behind(self, input_ids: Sequence[int], start: int, end: int) -> str:
        before = self._decode(input_ids[max(start - 1, 0) : start])
        return self._decode(input_ids[max(start - 1, 0) : end])[len(before) :]

    def _decode(self, input_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def decoder_steps(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The kinds of steps in which a tokenizer makes text of its tokens' names; none where it joins them with spaces."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    described = json.loads(decoder.__getstate__())
    return [step["type"] for step in described.get("decoders", [described])]


def text_of_bytes(data: bytes) -> str:
    """UTF-8 decoded, what is none of it spelled byte by byte as `<0xE2>`."""
    # surrogateescape maps a stray byte to U+DC00 plus its value.
    text = data.decode(errors="surrogateescape")
    return "".join(
        f"<0x{ord(character) - 0xDC00:02X}>" if "\udc80" <= character <= "\udcff" else character for character in text
    )
