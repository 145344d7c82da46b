"""Predictions and the scores of an arm: with and without thinking, cut answers, several right ones."""

from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.evaluation.answers import arm_scores, comparison_of_complete, comparisons_of, prediction
from llmft_cli.evaluation.metrics import best_score, score
from llmft_cli.evaluation.prompts import Prompt
from llmft_cli.evaluation.results import Prediction
from llmft_cli.serving.generation import Answer

USER = [{"role": "user", "content": "Capital of France?"}]


def of(base: str, tuned: str, expected: list[str] | None, cut: str = "", begun: bool = False) -> Prediction:
    answers = {"base": Answer(base, 9, "base" in cut), "tuned": Answer(tuned, 9, "tuned" in cut)}
    return prediction(Prompt(USER, expected, "p.jsonl line 1"), answers, begun)


def test_thinking_is_kept_but_not_scored() -> None:
    thought = "<think>France, so Paris.</think>Paris"
    found = of(thought, "Paris", ["Paris"])
    assert found.answers == {"base": thought, "tuned": "Paris"}
    assert found.scored == {"base": "Paris"}
    assert found.scores["base"] == found.scores["tuned"] == score("Paris", "Paris")
    assert found.raw_scores == {"base": score(thought, "Paris"), "tuned": score("Paris", "Paris")}
    assert found.raw_scores["base"]["exact_match"] == 0


def test_an_answer_cut_while_thinking_is_empty() -> None:
    found = of("<think>France is a country", "Paris", ["Paris"], cut="base")
    assert (found.scored, found.cut) == ({"base": ""}, {"base": True, "tuned": False})
    assert set(found.scores["base"].values()) == {0.0}
    assert (found.is_empty("base"), found.is_empty("tuned")) == (True, False)
    begun = of("France is a country", "It is.</think>Paris", ["Paris"], cut="base", begun=True)
    assert begun.scored == {"base": "", "tuned": "Paris"}
    assert begun.scores["tuned"]["exact_match"] == 1


def test_thinking_in_the_expected_answer_is_treated_alike() -> None:
    expected = "<think>France.</think>Paris"
    found = of("Paris", expected, [expected])
    assert found.expected == expected
    assert [found.scores[arm]["exact_match"] for arm in ("base", "tuned")] == [1, 1]
    assert [found.raw_scores[arm]["exact_match"] for arm in ("base", "tuned")] == [0, 1]


def test_any_of_several_right_answers_counts() -> None:
    found = of("paris.", "Lyon", ["The capital is Paris", "Paris"])
    assert found.expected == ["The capital is Paris", "Paris"]
    assert found.scores["base"] == best_score("paris.", ["The capital is Paris", "Paris"])
    assert found.scores["base"]["exact_match"] == 1
    assert found.raw_scores == {}


def test_answers_without_an_expected_one_are_counted_but_not_scored() -> None:
    found = of("a", "", None, cut="base")
    assert (found.scores, found.raw_scores) == ({}, {})
    base, tuned = (arm_scores(arm, None, [found]) for arm in ("base", "tuned"))
    assert (base.cut, base.empty, base.token_f1, base.raw) == (1, 0, None, None)
    assert (tuned.cut, tuned.empty) == (0, 1)
    assert comparisons_of([found], 0) == []
    assert comparison_of_complete([found], 0) is None


def test_an_arms_scores_have_means_counts_and_the_raw_means() -> None:
    rows = [
        of("<think>x</think>Paris", "Paris", ["Paris"]),
        of("<think>x", "Paris", ["Paris"], cut="base"),
        of("Lyon", "", None),
    ]
    base = arm_scores("base", None, rows)
    assert (base.exact_match, base.cut, base.empty, base.thinking) == (0.5, 1, 1, 2)
    assert base.raw is not None
    assert base.raw["exact_match"] == 0
    assert arm_scores("tuned", None, rows).raw == {"exact_match": 1, "token_f1": 1, "rouge_l": 1, "chrf": pytest.approx(1)}
    plain: list[Any] = [of("a", "b", ["a"])]
    assert arm_scores("base", None, plain).raw is None


def test_complete_answers_are_compared_by_themselves() -> None:
    rows = [of("Lyon", "Paris", ["Paris"], cut="base"), of("Paris", "Paris", ["Paris"]), of("Paris", "Paris", ["Paris"])]
    complete = comparison_of_complete(rows, 0)
    assert complete is not None
    assert (complete.metric, complete.delta, complete.ci95) == ("token_f1", 0.0, (0.0, 0.0))
    assert comparison_of_complete(rows[:1], 0) is None  # none is complete
    assert comparison_of_complete(rows[1:], 0) is None  # all are
