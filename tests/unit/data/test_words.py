from __future__ import annotations

import pytest

from llmft_cli.data.words import WORD, count_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("42", 1),
        ("+", 1),
        ("two words", 2),
        ("déjà vu", 2),
        ("是", 1),
        ("积极。", 1),
        ("天气很好", 2),
        ("今天天气很好。", 2),
        ("是,好", 2),
        ("コンピューター", 1),
        ("コンピューターを買う", 2),
        ("今日は天気がいいです", 4),
        ("ใช่", 1),
        ("สวัสดี", 1),
        ("วันนี้อากาศดีมาก", 2),
        ("ថ្ងៃនេះអាកាសធាតុល្អណាស់", 3),
        ("用Python写", 3),
        ("오늘 날씨", 2),
        ("😀", 1),
        ("\u3000", 0),
    ],
)
def test_the_number_of_words(text: str, words: int) -> None:
    assert count_words(text) == words


def test_a_word_has_its_vowel_signs() -> None:
    assert WORD.findall("हिन्दी भाषा, สวัสดี 12 e\u0301te\u0301") == ["हिन्दी", "भाषा", "สวัสดี", "e\u0301te\u0301"]
