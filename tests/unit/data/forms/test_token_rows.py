from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.data.forms.formats import RowError, Tokenised, parse

IDS = [5, 6, 7]


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({}, [-100, 6, 7]),
        ({"input_ids": "[5, 6, 7]"}, [-100, 6, 7]),
        ({"input_ids": [5.0, 6, 7.0]}, [-100, 6, 7]),
        ({"labels": IDS}, [-100, 6, 7]),
        ({"labels": [-100, -100, 7]}, [-100, -100, 7]),
        ({"labels": [5, -100.0, 7]}, [-100, -100, 7]),
        ({"labels": "[-100, -100, 7]"}, [-100, -100, 7]),
        ({"labels": None, "loss_mask": ""}, [-100, 6, 7]),
        ({"assistant_masks": [0, 0, 1]}, [-100, -100, 7]),
        ({"completion_mask": [0, 1.0, 0]}, [-100, 6, -100]),
        ({"loss_mask": [False, True, True]}, [-100, 6, 7]),
        ({"loss_mask": "[1, 0, 1]"}, [-100, -100, 7]),
        ({"completion_mask": [0, 1, 1], "assistant_masks": [1, 0, 1]}, [-100, -100, 7]),
        ({"labels": [-100, 6, 7], "loss_mask": [1, 1, 0]}, [-100, 6, -100]),
    ],
)
def test_what_is_learned_of_token_ids(row: dict[str, Any], labels: list[int]) -> None:
    form, example = parse({"input_ids": IDS, **row})
    assert (form, example) == ("tokens", Tokenised(IDS, labels))
    assert isinstance(example, Tokenised)
    assert {type(item) for item in example.input_ids + example.labels} == {int}


def test_padding_is_taken_away() -> None:
    row = {"input_ids": [0, 5, 6, 7, 0], "attention_mask": [0, 1, 1, 1, 0]}
    assert parse(row) == ("tokens", Tokenised(IDS, [-100, 6, 7]))
    assert parse({**row, "labels": [-100, -100, -100, 7, -100]}) == ("tokens", Tokenised(IDS, [-100, -100, 7]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": None}, "input_ids must be a list of whole numbers, not null"),
        ({"input_ids": []}, "input_ids must be a list of whole numbers, not an empty list"),
        ({"input_ids": "5 6 7"}, "input_ids must be a list of whole numbers, not text"),
        ({"input_ids": "[5, 6"}, "input_ids is not valid JSON: Expecting ',' delimiter at character 6"),
        ({"input_ids": [5, "6"]}, "input_ids[2] is '6', not a whole number"),
        ({"input_ids": [5, True]}, "input_ids[2] is true/false, not a whole number"),
        ({"input_ids": [5, None]}, "input_ids[2] is null, not a whole number"),
        ({"input_ids": [5, 6.5]}, "input_ids[2] is 6.5, not a whole number"),
        ({"input_ids": [5, float("inf")]}, "input_ids[2] is inf, not a whole number"),
        ({"input_ids": [[5, 6]]}, "input_ids[1] is a list, not a whole number"),
        ({"input_ids": [5, -1]}, "input_ids[2] is -1; token ids cannot be negative"),
        ({"input_ids": [5]}, "no token is supervised"),
        ({"labels": [5, 6]}, "labels has length 2, but input_ids has length 3"),
        ({"labels": [6, 7, -100]}, "labels[1] is 6, neither -100 nor the token id (5)"),
        ({"labels": [5, 6, "7"]}, "labels[3] is '7', not a whole number"),
        ({"labels": "x"}, "labels must be a list of whole numbers, not text"),
        ({"labels": [-100, -100, -100]}, "no token is supervised"),
        ({"labels": [5, -100, -100]}, "no token is supervised"),
        ({"loss_mask": [0, 1]}, "loss_mask has length 2, but input_ids has length 3"),
        ({"loss_mask": [0, 1, 2]}, "loss_mask[3] is 2, not 0 or 1"),
        ({"assistant_masks": [0, 1, "1"]}, "assistant_masks[3] is '1', not 0 or 1"),
        ({"completion_mask": 1}, "completion_mask must be a list of 0 and 1, not a number"),
        ({"completion_mask": []}, "completion_mask must be a list of 0 and 1, not an empty list"),
        ({"completion_mask": [1, 0, 0]}, "no token is supervised"),
        ({"attention_mask": [0, 0, 0]}, "no token is supervised"),
        ({"attention_mask": [1, 1]}, "attention_mask has length 2, but input_ids has length 3"),
    ],
)
def test_malformed_token_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse({"input_ids": IDS, **row})
    assert str(caught.value) == reason
