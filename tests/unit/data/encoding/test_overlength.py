"""Rows longer than a sequence, and what they lose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import STYLES, talk, text_of

from llmft_cli.data.encoding.encoder import ConversationEncoder, Encoded, true_spans
from llmft_cli.data.encoding.overlength import OverlengthLosses, TurnStart, apply_policy, slice_row, turn_starts
from llmft_cli.data.forms.examples import Conversation

# Two answers: tokens 2 to 4 and 8 to 9.
ROW = Encoded(list(range(100, 111)), [(2, 5), (8, 10)])


@pytest.mark.parametrize(
    ("policy", "capacity", "kept", "losses"),
    [
        ("drop", 4, [], OverlengthLosses(1, 11, 2, dropped=1)),
        ("truncate", 4, [([100, 101, 102, 103], [(2, 4)])], OverlengthLosses(1, 7, 2)),
        ("truncate", 5, [([100, 101, 102, 103, 104], [(2, 5)])], OverlengthLosses(1, 6, 1)),
        # Nothing is left to learn: this used to count as truncated.
        ("truncate", 2, [], OverlengthLosses(1, 11, 2, dropped=1)),
        # The first token of the second part, 103 or 104, is not supervised.
        (
            "split",
            3,
            [([100, 101, 102], [(2, 3)]), ([103, 104, 105], [(1, 2)]), ([106, 107, 108], [(2, 3)])],
            OverlengthLosses(1, 2, 1),
        ),
        ("split", 4, [([100, 101, 102, 103], [(2, 4)]), ([108, 109, 110], [(1, 2)])], OverlengthLosses(1, 4, 1)),
        ("split", 8, [(list(range(100, 108)), [(2, 5)]), ([108, 109, 110], [(1, 2)])], OverlengthLosses(1, 0, 0)),
    ],
)
def test_policies(policy: str, capacity: int, kept: object, losses: OverlengthLosses) -> None:
    told = OverlengthLosses()
    rows = apply_policy(ROW, capacity, policy, told)
    assert [(row.input_ids, row.supervised) for row in rows] == kept
    assert told == losses


@given(
    marks=st.lists(st.booleans(), min_size=2, max_size=40).map(lambda marks: [False, *marks]),
    capacity=st.integers(2, 50),
    policy=st.sampled_from(["truncate", "split"]),
)
def test_a_part_is_supervised_where_the_row_was_but_for_its_first_token(marks: list[bool], capacity: int, policy: str) -> None:
    row = Encoded(list(range(len(marks))), true_spans(marks))
    for part in apply_policy(row, capacity, policy, OverlengthLosses()):
        assert len(part.input_ids) <= capacity
        expected = [marks[token] and place > 0 for place, token in enumerate(part.input_ids)]
        assert [label != -100 for label in part.labels] == expected


def test_losses_add_up() -> None:
    told = OverlengthLosses()
    for _ in range(3):
        apply_policy(ROW, 4, "drop", told)
    assert told == OverlengthLosses(3, 33, 6, dropped=3)


def test_cut_keeps_the_ids() -> None:
    assert slice_row(ROW, (3, 9)) == Encoded([103, 104, 105, 106, 107, 108], [(1, 2), (5, 6)])


def lengths_of_parts(supervised: list[tuple[int, int]], turns: list[tuple[int, bool]], length: int, capacity: int) -> list[int]:
    row = Encoded(list(range(length)), supervised)
    starts = [TurnStart(*turn) for turn in turns]
    return [len(part.input_ids) for part in apply_policy(row, capacity, "split", OverlengthLosses(), starts)]


def test_a_part_begins_with_the_user_if_possible() -> None:
    """Parts used to begin wherever the capacity ended, in the middle of an answer."""
    # Two questions of 4 tokens with answers of 6.
    turns = [(4, False), (10, True), (14, False)]
    assert lengths_of_parts([(4, 10), (14, 20)], turns, 20, capacity=15) == [10, 10]
    assert lengths_of_parts([(4, 10), (14, 20)], turns, 20, capacity=10) == [10, 10]


def test_without_room_for_an_exchange_a_part_begins_with_another_turn() -> None:
    # A question, two calls and their results; only one call fits into a part.
    turns = [(2, False), (6, False), (8, False), (12, False)]
    assert lengths_of_parts([(2, 6), (8, 12), (12, 13)], turns, 13, capacity=8) == [8, 5]


def test_only_a_turn_longer_than_the_capacity_is_cut_inside() -> None:
    # The question stays with the first part of its answer.
    assert lengths_of_parts([(2, 25)], [(2, False)], 25, capacity=10) == [10, 10, 5]
    # The exchange before the long answer is a part of its own.
    assert lengths_of_parts([(2, 5), (7, 30)], [(2, False), (5, True), (7, False)], 30, capacity=10) == [5, 10, 10, 5]


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=12), st.integers(9, 20), st.integers(0, 3))
def test_every_part_begins_at_a_turn_if_all_turns_fit(turns: list[tuple[int, bool]], capacity: int, first: int) -> None:
    places, place = [], first
    for size, by_user in turns:
        places.append(TurnStart(place, by_user))
        place += size
    row = Encoded(list(range(place)), [(0, place)])
    parts = apply_policy(row, capacity, "split", OverlengthLosses(), places) if place > capacity else []
    assert {part.input_ids[0] for part in parts} <= {0, *(turn.token for turn in places)}
    assert all(len(part.input_ids) <= capacity for part in parts)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_parts_of_a_long_conversation_are_whole_exchanges(style: Any, encoders: dict[str, ConversationEncoder]) -> None:
    encoder = encoders[style.name]
    turns = [("user", "Is the tower open?"), ("assistant", "Yes, it is.")] * 4
    rendered = encoder.rows(Conversation(talk(turns))).rows[0]
    tokens = encoder.tokenise([rendered])[0]
    encoded = encoder.mask(rendered, tokens)
    told = OverlengthLosses()
    capacity = len(encoded.input_ids) * 2 // 3
    parts = apply_policy(encoded, capacity, "split", told, turn_starts(rendered, tokens))
    texts = [text_of(encoder.tokenizer, part.input_ids) for part in parts]
    assert [text.count("Is the tower open?") for text in texts] == [text.count("Yes, it is.") for text in texts]
    assert sum(text.count("Yes, it is.") for text in texts) == 4
    assert len(parts) == 2
    assert told == OverlengthLosses(rows=1)
    # Nothing of the mask is lost: each part begins with text of the template.
    assert sum(stop - start for part in parts for start, stop in part.supervised) == sum(
        stop - start for start, stop in encoded.supervised
    )


def test_the_system_message_inside_a_question_is_not_parted_from_it(encoders: dict[str, ConversationEncoder]) -> None:
    rows = {
        name: encoders[name].rows(Conversation(talk([("system", "s"), ("user", "q"), ("assistant", "a")]))).rows[0]
        for name in ("llama-2", "chatml")
    }
    starts = {name: [row.text[place:][:13] for place, _ in row.turn_starts] for name, row in rows.items()}
    assert starts == {"llama-2": ["[/INST] a </s>"[:13]], "chatml": ["<|im_start|>u", "<|im_start|>a"]}
