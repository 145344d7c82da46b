import math
import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft_cli.evaluation import metrics

WORDS = st.lists(st.sampled_from(["lamp", "bulb", "shade", "Été", "лампа"]), max_size=8)


def slow_longest_common_subsequence(first: list[str], second: list[str]) -> int:
    @cache
    def length(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("The Eiffel Tower!", "eiffel  tower", 1.0),
        ("an Eiffel-Tower", "EiffelTower", 1.0),  # SQuAD drops the hyphen and does not split at it
        ("theatre", "atre", 0.0),
        ("A", "", 0.0),
        ("B", "A", 0.0),
        ("A.", "a", 1.0),
        ("the", "A", 0.0),
        ("+", "-", 0.0),
        ("+", "+", 1.0),
        ("", "", 1.0),
        ("", "Paris", 0.0),
        ("«Привет», мир…", "привет мир", 1.0),
        ("東京。", "東京", 1.0),
        ("e\u0301te\u0301", "été", 1.0),
        ("3.5", "35", 0.0),  # a number keeps its point and sign
        ("It is 3.5.", "it is 3.5", 1.0),
        ("-5", "5", 0.0),
        ("(-5)", "-5", 1.0),
        ("1,000", "1000", 1.0),
        ("10-5", "105", 1.0),
        ("covid-19", "COVID19", 1.0),
    ],
)
def test_exact_match_follows_squad(answer: str, expected: str, value: float) -> None:
    assert metrics.exact_match(answer, expected) == value


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("the cat sat on the mat", "a cat on a mat", 6 / 7),  # cat sat on mat / cat on mat: P 3/4, R 3/3
        ("lamp lamp lamp", "lamp", 1 / 2),  # a repeated word counts once: P 1/3, R 1
        ("red", "blue", 0.0),
        ("", "blue", 0.0),
        ("", "", 1.0),
        ("日本の首都", "日本", 4 / 7),  # P 2/5, R 1
        ("हिन्दी भाषा", "हिन्दी", 2 / 3),
    ],
)
def test_token_f1_by_hand(answer: str, expected: str, value: float) -> None:
    assert metrics.token_f1(answer, expected) == pytest.approx(value)


@settings(deadline=None)  # the first call imports the library
@given(WORDS, WORDS)
def test_rouge_l_equals_a_slow_longest_common_subsequence(answer: list[str], expected: list[str]) -> None:
    common = slow_longest_common_subsequence([word.lower() for word in answer], [word.lower() for word in expected])
    total = len(answer) + len(expected)
    assert metrics.rouge_l(" ".join(answer), ", ".join(expected)) == pytest.approx(2 * common / total if total else 1.0)


@settings(deadline=None)  # the first call imports the library
@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_of_rouge_score(text: str) -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    theirs = DefaultTokenizer().tokenize(text)
    assert not theirs or metrics.UnicodeTokenizer().tokenize(text) == theirs


def test_rouge_l_sees_words_without_ascii_letters() -> None:
    assert metrics.rouge_l("Москва столица", "Москва столица") == 1.0
    assert metrics.rouge_l("Москва столица", "Париж город") == 0.0
    assert metrics.rouge_l("हिन्दी", "हिन्द") == 0.0
    assert metrics.rouge_l("👍", "👍") == 1.0
    assert metrics.rouge_l("👍", "👎") == 0.0
    assert metrics.rouge_l("東京都", "東京") == pytest.approx(0.8)


def test_chrf_is_sacrebleus() -> None:
    import sacrebleu

    answer, expected = "Within 14 days of delivery.", "Within 30 days of delivery, in its packaging."
    assert metrics.chrf(answer, expected) == pytest.approx(sacrebleu.corpus_chrf([answer], [[expected]]).score / 100)
    assert 0 < metrics.chrf(answer, expected) < 1


@settings(deadline=None)  # the first call imports the library
@given(st.text(max_size=30), st.text(max_size=30))
def test_scores_are_shares_and_equal_texts_agree(answer: str, expected: str) -> None:
    assert list(metrics.score(answer, expected)) == ["exact_match", "token_f1", "rouge_l", "chrf"] == list(metrics.TEXT_METRICS)
    assert all(0 <= value <= 1 and math.isfinite(value) for value in metrics.score(answer, expected).values())
    assert all(value == pytest.approx(1) for value in metrics.score(expected, expected).values())


@pytest.mark.parametrize(("answer", "expected"), [("", "lamp"), ("lamp", ""), (" \n", "lamp")])
def test_an_empty_text_agrees_with_no_other(answer: str, expected: str) -> None:
    assert set(metrics.score(answer, expected).values()) == {0.0}


def test_importing_the_package_loads_no_metric_library() -> None:
    code = (
        "import sys, llmft_cli.evaluation.metrics, llmft_cli.evaluation.report;"
        "print(sorted({'rouge_score', 'nltk', 'sacrebleu', 'scipy', 'numpy', 'jinja2', 'rich', 'typer'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_best_of_several_right_answers_counts() -> None:
    answer, expected = "the red lamp", ["a blue lamp", "Red lamp", "lamp"]
    each = [metrics.score(answer, text) for text in expected]
    assert metrics.best_score(answer, expected) == {name: max(row[name] for row in each) for name in metrics.TEXT_METRICS}
    assert metrics.best_score(answer, expected)["exact_match"] == 1
    assert metrics.best_score(answer, ["green"])["token_f1"] == 0
