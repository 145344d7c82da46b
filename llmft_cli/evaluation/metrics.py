"""Text metrics of one answer against one expected answer: shares from 0 (nothing right) to 1 (the same).

Two empty texts agree (1) and an empty one agrees with no other text (0), in every metric.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
# Chinese characters and Japanese kana: written without spaces, so each one counts as a word.
SPACELESS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, white space folded.

    As `normalize_answer` of the SQuAD v1.1 evaluation script (Rajpurkar et al. 2016,
    arXiv:1606.05250), with three additions that leave plain English as it is there: letters are
    composed (NFC), all of Unicode's punctuation goes, not only ASCII's (as in MLQA's script), and a
    text that is nothing but articles or punctuation keeps them. Without the last, the expected
    answer "A" of a multiple choice would equal an empty answer.
    """
    lower = unicodedata.normalize("NFC", text).lower()
    bare = "".join(character for character in lower if not is_punctuation(character))
    candidates = (" ".join(version.split()) for version in (ARTICLES.sub(" ", bare), bare, lower))
    return next(filter(None, candidates), "")


def is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(answer: str, expected: str) -> float:
    """1 where both texts are equal after `normalised` (SQuAD v1.1's exact match), else 0."""
    return float(normalised(answer) == normalised(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall over the words of the normalised texts.

    SQuAD v1.1's F1 (Rajpurkar et al. 2016), with SQuAD v2.0's rule for empty texts. Words are
    split at white space, and each Chinese character (as in MLQA) and Japanese kana is one.
    """
    answer_words = SPACELESS.sub(r" \1 ", normalised(answer)).split()
    expected_words = SPACELESS.sub(r" \1 ", normalised(expected)).split()
    if not answer_words or not expected_words:
        return float(answer_words == expected_words)
    common = (Counter(answer_words) & Counter(expected_words)).total()
    return 2 * common / (len(answer_words) + len(expected_words))


class UnicodeTokenizer:
    """Words for rouge-score, whose own tokenizer drops every letter outside a-z.

    The same words as its own for ASCII text. Runs of letters, marks and digits of any script are
    words, each Chinese character and Japanese kana is one, and a text without any (an emoji, "+")
    is split at white space instead of vanishing.
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
