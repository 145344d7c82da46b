"""Keys that include messages and rows in training, or exclude them, as public formats spell them."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, SYSTEM, USER, reason_of, talk

from llmft_cli.data.forms.formats import Conversation, Document, Tokenised, parse

WHOLE = [{"begin_offset": 0, "end_offset": 0, "train": True}]
NOTHING = [{"begin_offset": 0, "end_offset": 0, "train": False}]
LONG = {"role": "assistant", "content": "five!"}


def trained_of(row: dict[str, Any]) -> Any:
    example = parse(row)[1]
    assert isinstance(example, Conversation)
    return example.trained


def test_a_wrong_answer_that_is_marked_is_not_learned() -> None:
    """`loss: false`, as ms-swift and AgentInstruct write it, was ignored: the wrong answer was learned."""
    turns = [USER, {**ANSWER, "content": "BAD", "loss": False}, {**USER, "content": "sure?"}, {**ANSWER, "loss": True}]
    assert trained_of({"messages": turns}) == (False, False, False, True)
    shared = [
        {"from": "human", "loss": None, "value": "q"},
        {"from": "gpt", "loss": False, "value": "BAD"},
        {"from": "human", "loss": None, "value": "sure?"},
        {"from": "gpt", "loss": True, "value": "good"},
    ]
    assert trained_of({"conversations": shared}) == (False, False, False, True)


def test_a_row_of_llama_factory() -> None:
    """`loss_weight` was ignored, and a part's text under `value` was not found."""
    turns = [
        {"role": role, "content": [{"type": "text", "value": text}], "loss_weight": weight}
        for role, text, weight in [
            ("system", "s", 0.0), ("user", "q", 0.0), ("assistant", "a", 0.0), ("user", "q", 0.0), ("assistant", "a", 1.0)
        ]
    ]  # fmt: skip
    expected = Conversation([SYSTEM, USER, ANSWER, USER, ANSWER], None, (False, False, False, False, True))
    assert parse({"messages": turns, "extra_info": "x"}) == ("messages", expected)


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0}, {"weight": 0.0}, {"weight": False}, {"weight": "0"}, {"loss_weight": 0.0}, {"loss_scale": 0},
        {"loss": False}, {"loss": 0}, {"loss": "false"}, {"loss": "False"}, {"loss_mask": 0}, {"compute_loss": False},
        {"train": False}, {"train": 0}, {"training": "false"}, {"do_train": False}, {"trainable": False},
        {"is_trainable": 0.0}, {"masked": True}, {"is_masked": 1},
        {"train_detail": NOTHING}, {"training_detail": NOTHING}, {"train_detail": []}, {"train": False, "train_detail": []},
        {"weight": 0, "train": None, "loss": ""},
    ],
)  # fmt: skip
def test_every_spelling_excludes_an_answer(mark: dict[str, Any]) -> None:
    assert trained_of(talk(USER, {**ANSWER, **mark}, USER, ANSWER)) == (False, False, False, True)


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 1}, {"loss_weight": 1.0}, {"loss": True}, {"loss": "true"}, {"train": 1}, {"trainable": "True"},
        {"masked": False}, {"train_detail": WHOLE}, {"train": True, "train_detail": []}, {"train": True, "train_detail": WHOLE},
    ],
)  # fmt: skip
def test_every_spelling_includes_an_answer(mark: dict[str, Any]) -> None:
    assert trained_of(talk(USER, {**ANSWER, **mark}, USER, ANSWER)) == (False, True, False, True)


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": [{"input": "q", "output": "a", "output_with_loss": False}, {"input": "q", "output": "a"}]},
        {"dialog": [{"human": "q", "assistant": "a", "weight": 0}, {"human": "q", "assistant": "a", "weight": 1}]},
        {
            "contents": [
                {"role": "user", "parts": [{"text": "q"}]},
                {"role": "model", "parts": [{"text": "a"}], "weight": 0},
                {"role": "user", "parts": [{"text": "q"}]},
                {"role": "model", "parts": [{"text": "a"}]},
            ]
        },
    ],
)
def test_marks_in_conversations_of_other_shapes(row: dict[str, Any]) -> None:
    assert trained_of(row) == (False, False, False, True)


def test_marks_in_responses() -> None:
    asked = [USER, {"type": "message", **ANSWER}, USER]
    answered = [{"type": "message", **ANSWER, "weight": 0}, USER, {"type": "message", **ANSWER}]
    assert trained_of({"input": asked, "output": answered}) == (*[False] * 5, True)


@pytest.mark.parametrize("unset", [None, "", "null", "nan", float("nan")])
def test_a_key_without_a_value_says_nothing(unset: Any) -> None:
    assert trained_of(talk(USER, {**ANSWER, "loss": unset, "train_detail": None})) is None


@pytest.mark.parametrize("harmless", [False, 0, 0.0, "false", None, ""])
@pytest.mark.parametrize("key", ["weight", "loss", "train", "trainable", "loss_weight"])
def test_messages_that_are_no_answers_may_be_excluded(key: str, harmless: Any) -> None:
    assert trained_of(talk({**SYSTEM, key: harmless}, {**USER, key: harmless}, ANSWER)) is None


def spans(*parts: tuple[int, int, bool]) -> dict[str, Any]:
    return {"train_detail": [{"begin_offset": begin, "end_offset": end, "train": flag} for begin, end, flag in parts]}


@pytest.mark.parametrize(
    ("detail", "trained"),
    [
        (spans((0, 4, True)), True),
        (spans((0, 99, True)), True),
        (spans((3, 4, True), (0, 2, True)), True),
        (spans((0, 1, False), (2, 4, False)), False),
        (spans((5, 9, True)), False),
    ],
)
def test_spans_of_a_whole_message(detail: dict[str, Any], trained: bool) -> None:
    assert trained_of(talk(USER, {**LONG, **detail}, USER, ANSWER)) == (False, trained, False, True)


IN_PART = "messages[2] is to be learned in part (train_detail), but an answer is learned whole or not at all"


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        (spans((0, 1, True), (2, 4, False)), IN_PART),
        (spans((1, 4, True)), IN_PART),
        ({"train": True, **spans((1, 4, True))}, IN_PART.replace("(", "(train, ")),
        (
            {"train": True, **spans((0, 4, False))},
            "messages[2] is both included in and excluded from training (train, train_detail)",
        ),
        ({"train_detail": True}, "messages[2].train_detail is true/false, not a list of spans"),
        ({"train_detail": [1]}, "messages[2].train_detail[1] is a number, not an object"),
        (
            {"train_detail": [{"begin_offset": 0, "train": True}]},
            "messages[2].train_detail[1] needs begin_offset and end_offset, whole numbers, and train, true or false",
        ),
        (
            {"content": [{"type": "text", "text": "five!"}], **spans((0, 4, True))},
            "messages[2].train_detail has spans of a message that is not a text",
        ),
    ],
)
def test_spans_of_a_part_of_a_message(detail: dict[str, Any], reason: str) -> None:
    assert reason_of(talk(USER, {**LONG, **detail})) == reason


def test_a_part_of_an_excluded_message_is_not_learned_either() -> None:
    assert trained_of(talk(USER, {**LONG, "train": False, **spans((1, 4, True))}, USER, ANSWER)) == (False, False, False, True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk({**USER, "train": True}, ANSWER), "messages[1] is marked to be learned (train), but only answers can be"),
        (
            talk({**USER, "weight": 1, "loss": None}, ANSWER),
            "messages[1] is marked to be learned (weight), but only answers can be",
        ),
        (
            talk(USER, {**ANSWER, "mask": 0}),
            "messages[2].mask may mean learned or not learned: write weight, 1 for learned and 0 for not",
        ),
        (
            talk(USER, {**ANSWER, "loss": True, "weight": 0}),
            "messages[2] is both included in and excluded from training (loss, weight)",
        ),
        (talk(USER, {**ANSWER, "loss": False}), "every answer is excluded from training"),
        (
            {"prompt": [USER, {**ANSWER, "weight": 1}, USER], "completion": [ANSWER]},
            "an answer in prompt is marked to be learned, but only those in completion can be",
        ),
    ],
)  # fmt: skip
def test_marks_that_cannot_be_heeded(row: dict[str, Any], reason: str) -> None:
    assert reason_of(row) == reason


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ({"weight": 0}, "the row is excluded from training (weight is 0)"),
        ({"loss_weight": "0.0"}, "the row is excluded from training (loss_weight is '0.0')"),
        ({"train": False}, "the row is excluded from training (train is false)"),
        ({"masked": True}, "the row is excluded from training (masked is true)"),
        ({"weight": 0.5}, "weight is 0.5, but a row is learned whole (1) or not at all (0)"),
        ({"loss_scale": 2}, "loss_scale is 2, but a row is learned whole (1) or not at all (0)"),
        ({"loss_scale": [1.0, 0.0]}, "loss_scale is a list, but a row is learned whole (1) or not at all (0)"),
    ],
)
def test_marks_of_whole_rows(mark: dict[str, Any], reason: str) -> None:
    """A row with `weight: 0` or `train: false` was learned like any other."""
    assert reason_of({**talk(USER, ANSWER), **mark}) == reason
    assert reason_of({"text": "t", **mark}) == reason


@pytest.mark.parametrize(
    "mark", [{"weight": 1.0}, {"weight": None}, {"weight": 70}, {"loss": 0.83}, {"train": "x"}, {"loss_scale": 1}]
)
def test_rows_that_are_learned_whole(mark: dict[str, Any]) -> None:
    assert parse({"text": "t", **mark}) == ("text", Document("t"))


def test_the_weights_of_token_ids_are_masks() -> None:
    ids = [5, 6, 7]
    expected = ("tokens", Tokenised(ids, [-100, -100, 7]))
    assert parse({"input_ids": ids, "loss_weights": [0.0, 0.0, 1.0]}) == expected
    assert parse({"input_ids": ids, "loss_scale": [0, 0, 1]}) == expected
