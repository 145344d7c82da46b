"""Text that UTF-8 cannot express: Python represents undecodable bytes of arguments and input by lone surrogates."""

from __future__ import annotations

import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# `surrogateescape` maps an undecodable byte to U+DC00 plus its value, which is 0x80 at least.
ESCAPED_BYTES = range(0xDC80, 0xDD00)


def why_not_utf8(text: str) -> str:
    """What is wrong with the first character that UTF-8 cannot express, or an empty string."""
    found = LONE_SURROGATE.search(text)
    if found is None:
        return ""
    code = ord(found[0])
    if code in ESCAPED_BYTES:
        return f"is not UTF-8 (byte 0x{code - 0xDC00:02x} in column {found.start() + 1})"
    return f"has a lone surrogate (\\u{code:04x} in column {found.start() + 1})"


def replace_undecodable(text: str) -> str:
    """Text with the replacement character (U+FFFD) for every byte or surrogate that is not UTF-8."""
    return LONE_SURROGATE.sub("\ufffd", text)
