"""The headline says what else may explain a difference: cut or empty answers, no difference at all, other rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmft_cli.evaluation.answers import arm_scores, comparison_of_complete, comparisons_of, prediction
from llmft_cli.evaluation.prompts import Prompt
from llmft_cli.evaluation.results import HeldOutRows, Prediction, Summary
from llmft_cli.evaluation.verdict import headline
from llmft_cli.serving.generation import Answer
from llmft_cli.training.loop.held_out import HeldOutLoss

USER = [{"role": "user", "content": "Which lamp?"}]
RED = "red lamp"
BETTER = "On {} prompts the tuned model's token F1 is {} against the base model's {} "


def row(base: str, tuned: str, expected: str | None = RED, cut: str = "") -> Prediction:
    answers = {"base": Answer(base, 9, "base" in cut), "tuned": Answer(tuned, 9, "tuned" in cut)}
    return prediction(Prompt(USER, None if expected is None else [expected], "p line 1"), answers)


def summary(rows: list[Prediction], **losses: float) -> Summary:
    measured = {arm: HeldOutLoss(loss, 300) for arm, loss in losses.items()}
    arms = {arm: arm_scores(arm, measured.get(arm), rows) for arm in ("base", "tuned")}
    comparisons = comparisons_of(rows, 0)
    settings: dict[str, Any] = {"max_new_tokens": 256}
    return Summary("runs/x", "p", "tiny", arms, comparisons, rows, settings, complete=comparison_of_complete(rows, 0))


def test_a_clear_difference_without_cut_answers_is_told_as_before() -> None:
    text = headline(summary([row("blue", RED)] * 10))
    assert text == BETTER.format(10, "1.00", "0.00") + "(+1.00, 95% interval +1.00 to +1.00, p = 0.002)."


def test_a_difference_that_only_cut_answers_show_is_told_as_such() -> None:
    rows = [row("Well, let me tell you of lamps", RED, cut="base")] * 10 + [row(RED, RED), row("red", "red")]
    text = headline(summary(rows))
    assert text.startswith(BETTER.format(12, "0.97", "0.14"))
    assert "p = 0.002), but cut answers may explain the difference; " in text
    assert "; 10 of the base model's answers were cut at --max-new-tokens 256; " in text
    assert text.endswith(
        "; on the 2 prompts with complete answers the difference is 0.00, 95% interval 0.00 to 0.00, p = 1.000."
    )


def test_a_difference_with_every_answer_cut_has_nothing_to_confirm_it() -> None:
    text = headline(summary([row("lamps are", RED, cut="base tuned")] * 10))
    assert text.endswith(
        ", but cut answers may explain the difference; 10 of the base model's and 10 of the tuned model's answers "
        "were cut at --max-new-tokens 256; no prompt has complete answers of both."
    )
    worse = headline(summary([row(RED, "lamps are", cut="tuned")] * 10))
    assert "did worse" not in worse
    assert "but cut answers may explain the difference; 10 of the tuned model's answers were cut" in worse


def test_a_difference_that_complete_answers_confirm_stands() -> None:
    text = headline(summary([row("Well, lamps", RED, cut="base")] * 4 + [row("blue", RED)] * 10))
    assert "may explain" not in text
    assert "; 4 of the base model's answers were cut at --max-new-tokens 256; " in text
    assert text.endswith(
        "on the 10 prompts with complete answers the difference is +1.00, 95% interval +1.00 to +1.00, p = 0.002."
    )


def test_one_complete_prompt_has_no_interval() -> None:
    text = headline(summary([row("lamps are", RED, cut="base")] * 9 + [row("blue", RED)]))
    assert text.endswith("; on the 1 prompt with complete answers the difference is +1.00.")
    assert "may explain" in text


def test_empty_answers_are_no_merit_of_the_other_side() -> None:
    text = headline(summary([row("", RED)] * 10))
    assert text == (
        BETTER.format(10, "1.00", "0.00") + "(+1.00, 95% interval +1.00 to +1.00, p = 0.002), "
        "but only because the base model gave no answers; 10 of the base model's answers are empty."
    )
    thinking = headline(summary([row("<think>lamps", RED, cut="base")] * 10))
    assert "but only because the base model gave no answers" in thinking
    assert thinking.endswith("10 of the base model's answers are empty (10 cut while thinking).")
    broken = headline(summary([row(RED, "")] * 10))
    assert "the tuned model did worse" in broken
    assert broken.endswith("; 10 of the tuned model's answers are empty.")
    assert "empty" not in headline(summary([row("", "", expected="")] * 3))


def test_equal_answers_are_told_as_equal_answers() -> None:
    text = headline(summary([row(RED, RED)] * 3, base=2.0, tuned=1.9))
    assert text == (
        "On 3 prompts the tuned model gave the same answers as the base model: token F1 is 1.00; "
        "held-out loss 1.90 against 2.00."
    )
    assert headline(summary([row("blue", "blue")])).startswith("On 1 prompt the tuned model gave the same answers as")
    scores = headline(summary([row("blue", "green")] * 3))
    assert scores == "On 3 prompts the tuned model scored the same as the base model: token F1 is 0.00 on both sides."


def test_the_rows_of_the_loss_are_told_where_they_are_known() -> None:
    found = replace(summary([row("blue", RED)] * 10, base=2.0, tuned=2.5), held_out=HeldOutRows(24, 300))
    assert headline(found).endswith("; held-out loss got worse, 2.50 against 2.00 on the run's 24 held-out rows.")


@pytest.mark.parametrize("rows", [[], [row("a", "b", None, cut="base tuned")] * 3])
def test_nothing_scored(rows: list[Prediction]) -> None:
    text = headline(summary(rows))
    assert text == (
        "No text scores, because none of the 3 prompts has an expected answer; 3 of the base model's and 3 of the "
        "tuned model's answers were cut at --max-new-tokens 256."
        if rows
        else "No prompts were answered."
    )
