"""Sample rows as text, divided where the loss mask changes and at special tokens."""

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
from llmft_cli.run_dir.artifacts import reading
from llmft_cli.run_dir.run import RunDir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens, all supervised or all not. A special token is a segment of its own.

    Attributes:
        text: the decoded tokens. Bytes that are not a whole character within the segment are
            written as `<0xE2>`.
        supervised: whether the tokens are supervised.
        special: whether this is a special token, not text that looks like one.
        tokens: number of tokens.
    """

    text: str
    supervised: bool
    special: bool
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One prepared row.

    Attributes:
        source: the file or dataset of the row.
        line: its line there.
        split: `train` or `validation`.
        tokens: the row's length.
        supervised: number of supervised tokens.
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
    """A row with its origin, counts and text."""
    supervised = sum(label != IGNORED for label in labels)
    return Sample(source, line, split, len(input_ids), supervised, segments(tokenizer, input_ids, labels))


def read_samples(data: Path, count: int) -> list[Sample]:
    """The first `count` samples that prepare saved in a run's data.

    Raises:
        StageError: the file is missing or damaged.
    """
    path = data / SAMPLES_FILE
    with reading(RunDir(data.parent), path), path.open(encoding="utf-8") as file:
        found = [json.loads(line) for line in islice(file, count)]
        return [Sample(**{**row, "segments": [Segment(**segment) for segment in row["segments"]]}) for row in found]


def segments(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]) -> list[Segment]:
    """The text of a row's tokens, divided at special tokens and where the mask changes.

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
    """The text of any span of a row's tokens.

    `decode` alone may lose the first space (with SentencePiece) and shows partial characters as
    U+FFFD. So a span is decoded together with the token before it, and bytes are joined here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        steps = decoder_steps(tokenizer)
        self._tokenizer = tokenizer
        self._byte_level = steps == ["ByteLevel"]
        self._byte_fallback = "ByteFallback" in steps
        # Added tokens that are not special may be written in SentencePiece's way.
        self._added = {
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
                texts.append(self._decode_in_context(input_ids, run[0], run[-1] + 1))
        return "".join(texts)

    def _bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token, or None if they depend on the tokens around it."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token: str = self._tokenizer.convert_ids_to_tokens(token_id)
        if self._byte_level and all(character in BYTE_LEVEL_ALPHABET for character in token):
            return bytes(BYTE_LEVEL_ALPHABET[character] for character in token)
        if self._byte_fallback and token in FALLBACK_BYTES:
            return bytes([FALLBACK_BYTES[token]])
        return None

    def _decode_in_context(self, input_ids: Sequence[int], start: int, end: int) -> str:
        before = self._decode(input_ids[max(start - 1, 0) : start])
        return self._decode(input_ids[max(start - 1, 0) : end])[len(before) :]

    def _decode(self, input_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def decoder_steps(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The types of a tokenizer's decoder steps; none if it joins tokens with spaces."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


def text_of_bytes(data: bytes) -> str:
    """Decoded UTF-8; invalid bytes are written as `<0xE2>`."""
    # surrogateescape maps a stray byte to U+DC00 plus its value.
    text = data.decode(errors="surrogateescape")
    return "".join(
        f"<0x{ord(character) - 0xDC00:02X}>" if "\udc80" <= character <= "\udcff" else character for character in text
    )
