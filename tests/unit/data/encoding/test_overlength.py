"""Rows longer than a sequence, and what is lost of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmft_cli.data.encoding.encoder import Encoded, true_spans
from llmft_cli.data.encoding.overlength import OverlengthLosses, apply_policy, slice_row

# Two answers, of tokens 2 to 4 and 8 to 9.
ROW = Encoded(list(range(100, 111)), [(2, 5), (8, 10)])


@pytest.mark.parametrize(
    ("policy", "capacity", "kept", "losses"),
    [
        ("drop", 4, [], OverlengthLosses(1, 11, 2)),
        ("truncate", 4, [([100, 101, 102, 103], [(2, 4)])], OverlengthLosses(1, 7, 2)),
        ("truncate", 5, [([100, 101, 102, 103, 104], [(2, 5)])], OverlengthLosses(1, 6, 1)),
        ("truncate", 2, [], OverlengthLosses(1, 11, 2)),
        # The second part's first token, 103 or 104, is learned by nothing.
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
    assert told == OverlengthLosses(3, 33, 6)


def test_cut_keeps_the_ids() -> None:
    assert slice_row(ROW, (3, 9)) == Encoded([103, 104, 105, 106, 107, 108], [(1, 2), (5, 6)])
