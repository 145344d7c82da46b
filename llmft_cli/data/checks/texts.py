"""Checks for e-mail addresses, wrongly decoded text and invisible characters."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmft_cli.data.checks.rows import Joined
from llmft_cli.data.checks.secrets import Span, places

LOCAL_PART = re.compile(r"(?<![\w.%+-])[A-Za-z0-9](?:[\w.%+-]{0,62}[A-Za-z0-9_+-])?\Z", re.ASCII)
# At least two letters before the dot: `x@w.shape` is code.
DOMAIN = re.compile(r"((?:[A-Za-z0-9-]{1,63}\.){0,4}[A-Za-z0-9][A-Za-z0-9-]{1,62}\.[A-Za-z]{2,6})(?![\w@(-])", re.ASCII)
# Reserved for examples by RFC 2606 and 6761, other common examples, and file names.
EXAMPLE_DOMAIN = re.compile(
    r"(?:.*\.)?(?:[a-z0-9-]*example[a-z0-9-]*|test|self|e?mail|domain|company|(?:your|my|some)-?[a-z]+)\.(?:co\.)?[a-z]+"
    r"|.*\.(?:example|test|invalid|localhost|local|png|jpe?g|gif|svg|webp|css|js|py|html?|json|txt|md)",
    re.IGNORECASE,
)
EXAMPLE_PEOPLE = frozenset({"git", "user", "username", "name", "email", "your", "you", "youremail", "your.name", "your.email"})

# UTF-8 read as Latin-1 or cp1252: the character of a lead byte, then those of its continuation bytes.
FOLLOWING = "".join(bytes(range(0x80, 0xC0)).decode(encoding, "ignore") for encoding in ("latin-1", "cp1252"))
# Words can end with a capital A with tilde or circumflex, and be followed by punctuation.
FOLLOWING_LETTER = FOLLOWING.translate(dict.fromkeys(map(ord, bytes.fromhex("828485919293949596978bab9bbb").decode("cp1252"))))
MOJIBAKE = re.compile(
    f"\u00c2[{FOLLOWING_LETTER}]|\u00c3[{FOLLOWING_LETTER}]|\u00e2[\u20ac\u0080][{FOLLOWING}]|\u00f0[\u0178\u009f][{FOLLOWING}]{{2}}"
    "|\u00ef\u00bb\u00bf|\ufffd"
)
# A coarser version in bytes, where searching for the first byte is fast.
MOJIBAKE_BYTES = (
    re.compile(rb"\xc3(?:[\x82\x83\xb0]|\xa2\xe2\x82\xac|\xa2\xc2\x80|\xaf\xc2\xbb)"),
    re.compile(rb"\xef\xbf\xbd"),
)

# Without zero-width joiners and direction marks, which emoji, Persian, Arabic and Hebrew need, and without
# the tag characters of a flag, which follow the black flag.
CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f](?<![\U0001f3f4\U000e0020-\U000e007e][\U000e0000-\U000e007f])"
)
ASCII_CONTROL = bytes([*range(9), 11, 12, *range(14, 32), 127])
CONTROL_BYTES = (
    re.compile(rb"\xc2[\x80-\x9f\xad]"),
    re.compile(rb"\xe2(?:\x80[\x8b\xa8-\xae]|\x81[\xa0-\xa9])"),
    re.compile(rb"\xef(?:\xbb\xbf|\xbf[\xb9-\xbb])"),
    re.compile(rb"\xf3\xa0[\x80\x81]"),
)


def email_candidates(texts: Joined) -> Iterator[int]:
    yield from texts.holding(b"@")


def find_email(text: str) -> Span | None:
    """The span of an e-mail address that is not an example."""
    for place in places(text, "@"):
        domain = DOMAIN.match(text, place + 1)
        local = LOCAL_PART.search(text, max(0, place - 64), place) if domain else None
        if domain and local and not EXAMPLE_DOMAIN.fullmatch(domain[1]) and local.group().lower() not in EXAMPLE_PEOPLE:
            return local.start(), domain.end()
    return None


def mojibake_candidates(texts: Joined) -> Iterator[int]:
    if texts.non_ascii:
        for pattern in MOJIBAKE_BYTES:
            yield from texts.matching(pattern)


def find_mojibake(text: str) -> Span | None:
    match = MOJIBAKE.search(text)
    return match.span() if match else None


def control_candidates(texts: Joined) -> Iterator[int]:
    if len(texts.text.translate(None, ASCII_CONTROL)) < len(texts.text):
        yield from (number for code in ASCII_CONTROL for number in texts.holding(bytes([code])))
    if texts.non_ascii:
        for pattern in CONTROL_BYTES:
            yield from texts.matching(pattern)


def find_control(text: str) -> Span | None:
    match = CONTROL.search(text)
    return match.span() if match else None
