"""Preference data: rows that compare answers are named, with the columns that train on the better one."""

from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.data.forms.columns import parse_columns
from llmft_cli.data.forms.formats import Conversation, RowError, parse

USER = {"role": "user", "content": "q"}
BETTER = {"role": "assistant", "content": "good"}
WORSE = {"role": "assistant", "content": "bad"}
HUMAN = {"from": "human", "value": "q"}
PAIR = "chosen and rejected"
GOOD = Conversation([USER, BETTER])


def reason_of(row: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        parse(row)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "pair", "columns"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, PAIR, "completion=chosen"),
        ({"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]}, PAIR, "completion=chosen"),
        ({"prompt": "q", "chosen": BETTER, "rejected": WORSE}, PAIR, "completion=chosen"),
        (
            {"prompt": "q", "chosen": [USER, BETTER], "rejected": [USER, WORSE], "score_chosen": 8.5, "score_rejected": 2.0},
            PAIR,
            "messages=chosen",
        ),
        (
            {"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}},
            PAIR,
            "prompt=conversations,completion=chosen",
        ),
        (
            {"messages": [USER], "chosen": [BETTER], "rejected": [WORSE]},
            PAIR,
            "prompt=messages,completion=chosen",
        ),
        (
            {"chosen": [HUMAN, {"from": "gpt", "value": "good"}], "rejected": [HUMAN, {"from": "gpt", "value": "bad"}]},
            PAIR,
            "messages=chosen",
        ),
        (
            {
                "instruction": "q",
                "chosen_response": "good",
                "rejected_response": "bad",
                "chosen_rating": 4,
                "rejected_rating": 1,
            },
            "chosen_response and rejected_response",
            "output=chosen_response",
        ),
        ({"query": "q", "accepted": "good", "rejected": "bad"}, "accepted and rejected", "response=accepted"),
        ({"instruction": "q", "Chosen": "good", "Rejected": "bad"}, "Chosen and Rejected", "output=Chosen"),
    ],
)
def test_the_columns_for_the_chosen_side_read_the_row(row: dict[str, Any], pair: str, columns: str) -> None:
    reason = f"{pair} are a preference pair, which llmft cannot train on; --columns {columns} trains on the "
    assert reason_of(row).startswith(reason)
    assert parse(row, "auto", parse_columns(columns))[1] == GOOD


def test_the_better_answer_of_a_ranked_pair() -> None:
    row = {"qid": 7, "question": "q", "response_j": "good", "response_k": "bad"}
    assert reason_of(row) == (
        "response_j and response_k are a preference pair, which llmft cannot train on; "
        "--columns answer=response_j trains on the better side"
    )


@pytest.mark.parametrize(
    ("row", "compared"),
    [
        ({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}, "response_0 and response_1 are two"),
        ({"prompt": "q", "response_1": "a", "response_2": "b", "strength": -2}, "response_1 and response_2 are two"),
        ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, "human_ref_A and human_ref_B are two"),
        ({"conversation_a": [USER], "conversation_b": [USER], "winner": "tie"}, "conversation_a and conversation_b are two"),
        (
            {"instruction": "q", "completions": [{"response": "a", "overall_score": 7}, {"response": "b", "overall_score": 9}]},
            "completions has 2 rated",
        ),
        ({"prompt": "q", "generations": ["a", "b", "c"], "rating": [1, 5, 2]}, "generations has 3 rated"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": 2}, {"answer": "b", "rank": 1}]}, "answers has 2 rated"),
    ],
)
def test_answers_to_compare_are_named(row: dict[str, Any], compared: str) -> None:
    reason = reason_of(row)
    assert reason.startswith(compared)
    assert reason.endswith("which llmft cannot train on; keep the best one of each row as its completion")


def test_a_pair_that_no_columns_read_is_named_without_them() -> None:
    row = {"chosen": {"name": "x"}, "rejected": {"name": "y"}}
    assert reason_of(row) == "chosen and rejected are a preference pair, which llmft cannot train on"


def test_the_columns_given_stay_in_the_suggestion() -> None:
    with pytest.raises(RowError, match=r"; --columns prompt=frage,completion=chosen trains on the chosen side$"):
        parse({"frage": "q", "chosen": "good", "rejected": "bad"}, "auto", {"prompt": "frage"})


def test_a_whole_conversation_beside_a_pair_is_used() -> None:
    assert parse({"messages": [USER, BETTER], "chosen": [BETTER], "rejected": [WORSE]})[1] == GOOD
