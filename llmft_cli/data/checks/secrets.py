"""Finds secrets in texts, and masks them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmft_cli.data.checks.rows import Joined

Span = tuple[int, int]

# The shortest key below (AWS's) has 20 of these characters in a row; few words do.
KEY_LENGTH = 20
KEY_CHARACTERS = bytes(code for code in range(128) if chr(code).isalnum() or chr(code) in "_-")
NOT_IN_KEYS = bytes(32 if code not in KEY_CHARACTERS else code for code in range(256))

SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----)[\s\S]){0,200}?[A-Za-z0-9+/=]{40}[^-]*"
    r"|(?<![\w-])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"
    r"|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_[A-Za-z0-9_]{40,}"
    r"|glpat-[\w-]{20,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{15,}"
    r"|sk-(?=[\w-]{0,40}\d)[\w-]{20,}"
    r"|sk_live_[A-Za-z0-9]{20,}"
    r"|hf_[A-Za-z0-9]{30,}"
    r"|AIza[\w-]{35}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r")",
    re.ASCII,
)
# What tutorials write instead of a secret.
PLACEHOLDER = re.compile(
    r"example|your|\bmy|xxx|\*\*\*|\.\.\.|placeholder|change|dummy|sample|test|demo|fake|secret|passw|abc|1234|0000|qwerty"
    r"|[_-]here|none|null|true|false|token|string|user|\benv",
    re.IGNORECASE,
)
# Random keys contain `my` or `abc` by chance, but not these.
KEY_PLACEHOLDER = re.compile(r"example|your[_-]|x{6}|\*{4}|placeholder|0{8}|1234567890|abcdefgh|(.)\1{9}", re.IGNORECASE)

ASSIGNED_NAMES = ("passw", "secret", "_token")
API_KEY = re.compile(rb"api[_-]?key")
# A name, an assignment, and a value that is not an expression.
ASSIGNMENT = re.compile(
    r"(?:passwor[dt]|passwd|secret(?:[_-]?key)?|_token|api[_-]?key)[\"']?[ \t]{0,3}(?:=>|:=|[:=])[ \t]{0,3}[\"'`]?"
    r"([^\s\"'`<>{}()\[\]$,;]{8,64})(?![\w(\[{.])",
    re.IGNORECASE,
)
ADDRESS_SIGN = "://"
ADDRESS = re.compile(r"://[^\s/:@\"'<>]{1,64}:([^\s/:@\"'<>{}$]{6,64})@(?=\w)")
KEY_HEADER = re.compile("-----BEGIN [A-Z ]*-----")
MASK = "\N{BULLET}"
SHOWN = 4


def secret_candidates(texts: Joined) -> Iterator[int]:
    """Numbers of the texts that may contain a key: those with a long run of key characters."""
    import numpy

    outside = numpy.frombuffer(b" " + texts.text.translate(NOT_IN_KEYS) + b" ", numpy.uint8) == 32
    gaps = numpy.flatnonzero(outside)
    runs = gaps[:-1][gaps[1:] - gaps[:-1] > KEY_LENGTH]
    yield from (texts.at(position) for position in runs.tolist())


def password_candidates(texts: Joined) -> Iterator[int]:
    lowered = texts.lowered()
    for name in ASSIGNED_NAMES:
        yield from lowered.holding(name.encode())
    yield from lowered.matching(API_KEY)
    yield from texts.holding(b"@")


def find_secret(text: str) -> Span | None:
    return next(secrets(text), None)


def find_password(text: str) -> Span | None:
    return next(passwords(text), None)


def secrets(text: str) -> Iterator[Span]:
    for match in SECRET.finditer(text):
        if not KEY_PLACEHOLDER.search(match.group()[:200]):
            yield match.span()


def passwords(text: str) -> Iterator[Span]:
    """Spans of password values that look real: letters with digits or signs, and not a placeholder."""
    # This letter is two in lower case, which would shift all positions after it.
    lowered = text.replace("\u0130", "I").lower()
    found = [ASSIGNMENT.match(text, place) for name in (*ASSIGNED_NAMES, "api") for place in places(lowered, name)]
    found += [ADDRESS.match(text, place) for place in places(text, ADDRESS_SIGN)]
    for match in found:
        if match and is_mixture(match[1]) and not PLACEHOLDER.search(match[1]):
            yield match.span(1)


def is_mixture(value: str) -> bool:
    return any(map(str.isalpha, value)) and any(not character.isalpha() and character not in "_-./" for character in value)


def places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def masked(text: str) -> str:
    """The text with secrets masked, except for a few first characters of each; the length stays the same."""
    characters = list(text)
    for start, end in [*secrets(text), *passwords(text)]:
        header = KEY_HEADER.match(text, start, end)
        shown = header.end() if header else start + min(SHOWN, (end - start) // 4)
        characters[shown:end] = MASK * (end - shown)
    return "".join(characters)
