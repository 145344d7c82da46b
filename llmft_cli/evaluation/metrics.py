"""Text metrics of an answer against an expected answer, from 0 (nothing right) to 1 (identical).

In every metric, two empty texts score 1, and an empty and a non-empty text score 0.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
# The decimal point within a number and the sign before it: without them 3.5 would equal 35, and -5 would equal 5.
PARTS_OF_NUMBERS = re.compile(r"(?<=\d)\.(?=\d)|(?<![\w.)-])-(?=\d)")
# Chinese characters and Japanese kana are written without spaces, so each counts as a word.
SPACELESS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, white space collapsed.

    As `normalize_answer` of the SQuAD v1.1 evaluation script (Rajpurkar et al. 2016,
    arXiv:1606.05250), with four additions that do not affect plain English: letters are
    composed (NFC), all Unicode punctuation is removed, not only ASCII (as in MLQA's script), a
    number keeps its sign and decimal point, and a text of only articles or punctuation keeps them.
    Otherwise the expected answer "A" of a multiple-choice question would equal an empty answer.
    """
    lower = unicodedata.normalize("NFC", text).lower()
    kept = {match.start() for match in PARTS_OF_NUMBERS.finditer(lower)}
    bare = "".join(character for place, character in enumerate(lower) if place in kept or not is_punctuation(character))
    candidates = (" ".join(version.split()) for version in (ARTICLES.sub(" ", bare), bare, lower))
    return next(filter(None, candidates), "")


def is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(answer: str, expected: str) -> float:
    """1 if both texts are equal after `normalised` (SQuAD v1.1's exact match), else 0."""
    return float(normalised(answer) == normalised(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall over the words of the normalised texts.

    SQuAD v1.1's F1 (Rajpurkar et al. 2016), with SQuAD v2.0's rule for empty texts. Words are
    separated by white space; each Chinese character (as in MLQA) and Japanese kana is a word.
    """
    answer_words = SPACELESS.sub(r" \1 ", normalised(answer)).split()
    expected_words = SPACELESS.sub(r" \1 ", normalised(expected)).split()
    if not answer_words or not expected_words:
        return float(answer_words == expected_words)
    common = (Counter(answer_words) & Counter(expected_words)).total()
    return 2 * common / (len(answer_words) + len(expected_words))


class UnicodeTokenizer:
    """Tokenizer for rouge-score, whose own drops every letter outside a-z.

    Gives the same words for ASCII text. Runs of letters, marks and digits of any script are words,
    as is each Chinese character and Japanese kana; a text without any (an emoji, "+") is split at
    white space.
    """

    def tokenize(self, text: str) -> list[str]:
        lower = unicodedata.normalize("NFC", text).lower()
        kept = "".join(character if unicodedata.category(character)[0] in "LMN" else " " for character in lower)
        return SPACELESS.sub(r" \1 ", kept).split() or lower.split()


@functools.cache
def rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=UnicodeTokenizer())


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L F-measure: longest common subsequence of words (Lin 2004), by rouge-score, unstemmed."""
    if not answer.strip() or not expected.strip():
        return float(answer.strip() == expected.strip())
    return float(rouge_scorer().score(target=expected, prediction=answer)["rougeL"].fmeasure)


def chrf(answer: str, expected: str) -> float:
    """Sentence chrF2: F-score of character n-grams up to 6 (Popović 2015), by sacrebleu, over 100."""
    from sacrebleu import sentence_chrf

    if not answer.strip() or not expected.strip():
        return float(answer.strip() == expected.strip())
    return sentence_chrf(answer, [expected]).score / 100


TEXT_METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "chrf": chrf,
}


def score(answer: str, expected: str) -> dict[str, float]:
    """Every text metric of one answer, by name."""
    return {name: metric(answer, expected) for name, metric in TEXT_METRICS.items()}


def best_score(answer: str, expected: Sequence[str]) -> dict[str, float]:
    """As `score`, where any of several expected answers is right: the best value of each metric, as in SQuAD's script."""
    scores = [score(answer, text) for text in expected]
    return {name: max(row[name] for row in scores) for name in TEXT_METRICS}
