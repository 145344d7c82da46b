"""Words of any script, also of those that are written without spaces between words."""

from __future__ import annotations

import re
import unicodedata

# Thai to Tibetan, Burmese, Khmer, Chinese and Japanese.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f]+")
CJK_START = "\u3000"
# A word of Chinese has up to this many characters, as a rule; the other scripts spell sounds.
CJK_WORD, SPELLED_WORD = 3, 8
# Vowel signs and accents: part of a word, though not letters.
MARKS = "".join(chr(code) for code in range(0x300, 0x1D00) if unicodedata.category(chr(code)).startswith("M"))
WORD = re.compile(f"(?:[^\\W\\d_]|[{MARKS}])+")


def count_words(text: str) -> int:
    """The number of words in a text: an estimate where words are not separated by spaces.

    Symbols without letters count as one.
    """
    if text.isascii():
        return len(text.split())
    separated = UNSPACED.sub(" ", text).split()
    words = sum(any(map(str.isalnum, word)) for word in separated) + sum(map(words_in_run, UNSPACED.findall(text)))
    return words or int(not text.isspace())


def words_in_run(run: str) -> int:
    """The estimated number of words in text without spaces."""
    if run[0] < CJK_START:
        return -(-len(run) // SPELLED_WORD)
    return -(-len(KATAKANA.sub("\u30a2", run)) // CJK_WORD)
