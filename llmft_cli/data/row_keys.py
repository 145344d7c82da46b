"""Keys of rows: exact duplicates share one, and so do rows that must be on the same side of the split."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from llmft_cli.data.encoding.encoder import Encoded
from llmft_cli.data.encoding.rendered import RenderedRow
from llmft_cli.data.encoding.tokenising import Span


def duplicate_key(content: bytes, supervised: Sequence[Span]) -> bytes:
    """A key that rows share if both their ids (int32 as bytes) and their supervised spans are equal."""
    # No token has the id -1, so it ends the ids.
    mask = array("i", [-1, *(edge for span in supervised for edge in span)]).tobytes()
    return hashlib.blake2b(content + mask, digest_size=16).digest()


def grouping_key(content: bytes) -> int:
    """A key that equal contents share, never negative."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def unique_key(source: str, line: int, number: int) -> int:
    """A key that no two parts of rows share."""
    return grouping_key(f"{source}:{line}:{number}".encode("utf-8", "surrogateescape"))


def prompt_of(rendered: RenderedRow | None, encoded: Encoded) -> bytes:
    """What comes before a row's first answer, whatever `--train-on` is; empty if there is no prompt.

    Args:
        rendered: None for a row that is given as token ids. Its answers are what is supervised; its first token, which
            never is, is no prompt.
    """
    if rendered is not None:
        return rendered.text[: rendered.prompt_length].encode()
    start = encoded.supervised[0][0]
    return array("i", encoded.input_ids[:start]).tobytes() if start > 1 else b""
