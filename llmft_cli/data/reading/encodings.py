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
from llmft_cli.data.reading.rows import UTF_8, Source

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
CLEARLY_JAPANESE = 0.5  # share of kana, which other encodings do not show by chance
# A letter and a symbol that words do not have, as where ISO 8859-2 is read as cp1250.
BROKEN_WORDS = re.compile("[^\\W\\d_](?:[\xa2-\xa8\xac\xaf-\xb3\xb6\xb8\xb9\xbc-\xbe\xd7\xf7][^\\W\\d_]|[\xa6\xac\xb1\xb6])")
MOST_BROKEN_WORDS = 0.1
MOST_CAPITALS = 0.6
OTHER_LETTERS = re.compile("[^\\W\\d_\\x00-\\x7f]")

SAMPLE_BYTES = 1 << 14
# Fewer are more likely damage, and fit several languages.
LEAST_OTHER_BYTES = 6
LEAST_RARER_BYTES = 32  # for another encoding than cp1252
# If more of the bytes that are not ASCII are in pieces of UTF-8, the file is UTF-8 with some damaged lines.
UTF_8_SHARE = 0.05
MOST_DISORDER = 0.15
CLOSE_DISORDER = 0.02
CLEAR_COHERENCE = 0.1
NO_COHERENCE = 0.3  # so much less than another's
MOST_GUESSES = 3
# No byte below 0x30 is part of a longer character in any of the candidates.
PIECE_ENDS = re.compile(rb'[\n\r\t"]')
LONGEST_PIECE = 1 << 16
# Of a text in which each byte that is not UTF-8 is a lone surrogate.
OTHER_CHARACTERS, LEFT_OVER = re.compile("[^\x00-\x7f\udc80-\udcff]"), re.compile("[\udc80-\udcff]")
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
    pieces = list(pieces_to_judge(source))
    sample = b"\n".join(pieces)
    in_utf_8 = sum(len(OTHER_BYTES.findall(piece)) for piece in pieces if is_utf_8(piece))
    if in_utf_8 > UTF_8_SHARE * len(OTHER_BYTES.findall(sample)) or is_mostly_utf_8(sample):
        return Recognition(UTF_8)
    return judged(sample)


def is_utf_8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_mostly_utf_8(sample: bytes) -> bool:
    """Whether more characters than bytes are left over, as where each text is cut in its last character."""
    text = sample.decode(errors="surrogateescape")
    return len(OTHER_CHARACTERS.findall(text)) > len(LEFT_OVER.findall(text))


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
    count = len(OTHER_BYTES.findall(sample))
    if count < LEAST_OTHER_BYTES:
        return Recognition(None, ("cp1252",))
    from charset_normalizer import from_bytes

    # In one piece: of several, the last may be a single character, and its disorder counts as much as that of the others.
    found = from_bytes(sample, steps=1, chunk_size=len(sample), cp_isolation=list(CANDIDATES))
    matches = [match for match in found if is_plausible(match)]
    matches = [match for match in matches if kana_share(match) >= CLEARLY_JAPANESE] or matches
    name = name_of(chosen, sample) if (chosen := choice(matches)) else ""
    if name == "cp1252" or (name and count >= LEAST_RARER_BYTES):
        return Recognition(name)
    return Recognition(None, tuple(dict.fromkeys(name_of(match, sample) for match in matches))[:MOST_GUESSES])


def is_plausible(match: CharsetMatch) -> bool:
    """Whether a text has the script, the case and the words that a text in its encoding has."""
    text = str(match)
    letters = "".join(OTHER_LETTERS.findall(text))
    if match.encoding in SCRIPTS:
        script, least_share = SCRIPTS[match.encoding]
        return len(script.findall(letters)) >= least_share * max(len(letters), 1)
    # KOI8-R and cp1251 have capitals where the other has small letters.
    capitals = sum(letter.isupper() for letter in letters)
    broken_words = len(BROKEN_WORDS.findall(text))
    return capitals <= MOST_CAPITALS * len(letters) and broken_words <= MOST_BROKEN_WORDS * len(letters)


def kana_share(match: CharsetMatch) -> float:
    if SCRIPTS.get(match.encoding, (None,))[0] is not KANA:
        return 0.0
    letters = "".join(OTHER_LETTERS.findall(str(match)))
    return len(KANA.findall(letters)) / max(len(letters), 1)


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
