"""The encoding of a text that is not UTF-8: recognised from the bytes that are not ASCII, or left to the user.

charset-normalizer ranks the encodings that can be meant by how little disorder and how much of a language the decoded
text shows. What it ranks close together is decided by the language of the text, or not at all: a wrong guess would train
on wrong letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.data.reading.compression import UTF_8_BOM, chunks
from llmft_cli.data.reading.rows import Source

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

# Encodings that files of rows have, the widest of each family: cp949 contains EUC-KR, gb18030 contains GBK.
CANDIDATES = (
    *("gb18030", "big5", "cp950", "cp932", "euc_jp", "cp949"),
    *("cp1252", "cp1250", "iso8859_2", "cp1254", "cp1251", "koi8_r", "cp1253", "cp1256"),
)
# Which of the encodings for Latin letters a language needs; all others need cp1252.
CENTRAL_EUROPEAN = frozenset({"cp1250", "iso8859_2"})
ENCODINGS_OF_LANGUAGE = {
    **dict.fromkeys(("bs", "cs", "hr", "hu", "pl", "ro", "sk", "sl", "sq"), CENTRAL_EUROPEAN),
    **dict.fromkeys(("az", "tr"), frozenset({"cp1254"})),
}
WESTERN = frozenset({"cp1252"})
LATIN = CENTRAL_EUROPEAN | WESTERN | {"cp1254"}

HAN, KANA, HANGUL = re.compile("[\u4e00-\u9fff]"), re.compile("[\u3041-\u30fe]"), re.compile("[\uac00-\ud7a3]")
# The script of each of the encodings with characters of several bytes, and the least share of it among the letters.
SCRIPTS = {
    **dict.fromkeys(("gb18030", "big5", "cp950"), (HAN, 0.6)),
    **dict.fromkeys(("cp932", "euc_jp"), (KANA, 0.15)),
    "cp949": (HANGUL, 0.6),
}
OTHER_LETTERS = re.compile("[^\\W\\d_\\x00-\\x7f]")

SAMPLE_BYTES = 1 << 17
# Fewer are more likely damage, and fit several languages.
LEAST_OTHER_BYTES = 6
# Above this share of the pieces that are not ASCII, the file is UTF-8 with some damaged lines.
UTF_8_SHARE = 0.1
MOST_DISORDER = 0.15
CLOSE_DISORDER = 0.02
CLEAR_COHERENCE = 0.1
NO_COHERENCE = 0.3  # so much less than another's
MOST_GUESSES = 3
# No byte below 0x30 is part of a longer character in any of the candidates.
PIECE_ENDS = re.compile(rb'[\n\r\t"]')
LONGEST_PIECE = 1 << 16
OTHER_BYTES = re.compile(rb"[\x80-\xff]")


class Recognition(NamedTuple):
    """What the bytes of a file tell of its encoding.

    Attributes:
        encoding: its name in Python; `utf-8` if some lines are damaged; None if it is not certain.
        guesses: the likeliest names if it is not certain.
    """

    encoding: str | None
    guesses: tuple[str, ...] = ()


def recognise(source: Source) -> Recognition:
    """The encoding of a source in which some bytes are not UTF-8.

    Raises:
        DataError: the source cannot be read.
    """
    sample, are_utf_8 = [], 0
    for piece in pieces_to_judge(source):
        sample.append(piece)
        are_utf_8 += is_utf_8(piece)
    if are_utf_8 > UTF_8_SHARE * len(sample):
        return Recognition("utf-8")
    return judged(b"\n".join(sample))


def is_utf_8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def pieces_to_judge(source: Source) -> Iterator[bytes]:
    """The first pieces of a source that are not ASCII, `SAMPLE_BYTES` of them, cut where no character can be cut."""
    taken, rest = 0, b""
    for chunk in chunks(source):
        *pieces, rest = PIECE_ENDS.split(rest + chunk)
        if len(rest) > LONGEST_PIECE:
            whole, _, rest = rest.rpartition(b" ")
            pieces.append(whole)
        for piece in not_ascii(pieces):
            yield piece
            taken += len(piece)
            if taken > SAMPLE_BYTES:
                return
    yield from not_ascii([rest])


def not_ascii(pieces: Iterable[bytes]) -> Iterator[bytes]:
    return (bare for piece in pieces if (bare := piece.removeprefix(UTF_8_BOM)) and not bare.isascii())


def judged(sample: bytes) -> Recognition:
    """The encoding of bytes that are not UTF-8."""
    if len(OTHER_BYTES.findall(sample)) < LEAST_OTHER_BYTES:
        return Recognition(None, ("cp1252",))
    from charset_normalizer import from_bytes

    found = from_bytes(sample, cp_isolation=list(CANDIDATES))
    matches = [match for match in found if has_its_script(match)]
    chosen = choice(matches)
    if chosen:
        return Recognition(name_of(chosen, sample))
    return Recognition(None, tuple(dict.fromkeys(name_of(match, sample) for match in matches))[:MOST_GUESSES])


def has_its_script(match: CharsetMatch) -> bool:
    """Whether a text is mainly in the script that its encoding is for."""
    if match.encoding not in SCRIPTS:
        return True
    script, least_share = SCRIPTS[match.encoding]
    letters = "".join(OTHER_LETTERS.findall(str(match)))
    return len(script.findall(letters)) >= least_share * max(len(letters), 1)


def choice(matches: list[CharsetMatch]) -> CharsetMatch | None:
    """Which of several texts is meant, the most orderly first; None if that is not certain."""
    if not matches or matches[0].chaos > MOST_DISORDER:
        return None
    close = [match for match in matches if match.chaos <= matches[0].chaos + CLOSE_DISORDER]
    most_coherent = max(match.coherence for match in close)
    best, *others = [match for match in close if match.coherence > most_coherent - NO_COHERENCE]
    if not others:
        return best
    if not all(match.encoding in LATIN for match in (best, *others)):
        return best if all(best.coherence - match.coherence >= CLEAR_COHERENCE for match in others) else None
    import py3langid

    language, _ = py3langid.classify(str(best))
    fitting = ENCODINGS_OF_LANGUAGE.get(language, WESTERN)
    meant = [match for match in (best, *others) if match.encoding in fitting]
    return meant[0] if len(meant) == 1 else None


def name_of(match: CharsetMatch, sample: bytes) -> str:
    """The name of a match's encoding: of those that give the same text the best known, which is cp1252 for Latin letters."""
    if match.encoding in LATIN:
        try:
            if sample.decode("cp1252") == str(match):
                return "cp1252"
        except UnicodeDecodeError:
            pass
    return str(match.encoding)
