"""Keys of rows: exact duplicates share one, and so do rows that must be on the same side of the split."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from llmft_cli.data.encoding.encoder import Encoded
from llmft_cli.data.encoding.rendered import RenderedRow
from llmft_cli.data.encoding.tokenising import Span


def content_keys(content: bytes, supervised: Sequence[Span]) -> tuple[bytes, int]:
    """A key that rows share if their ids (int32 as bytes) and supervised spans are equal, and one for the ids alone."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    mask = array("i", [edge for span in supervised for edge in span]).tobytes()
    return hashlib.blake2b(digest + mask, digest_size=16).digest(), integer_of(digest)


def grouping_key(content: bytes) -> int:
    """A key that equal contents share, never negative."""
    return integer_of(hashlib.blake2b(content, digest_size=8).digest())


def integer_of(digest: bytes) -> int:
    """The first 63 bits of a digest."""
    return int.from_bytes(digest[:8], "big") >> 1


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
