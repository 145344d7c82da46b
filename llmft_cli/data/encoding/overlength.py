"""Rows longer than a sequence: drops, truncates or splits them, and counts what is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmft_cli.data.encoding.encoder import Encoded
from llmft_cli.data.encoding.rendered import RenderedRow
from llmft_cli.data.encoding.tokenising import EncodedTokens, Span, Tokens


class TurnStart(NamedTuple):
    """The first token of a turn, and whether the user speaks in it."""

    token: int
    by_user: bool


@dataclass
class OverlengthLosses:
    """How many rows were too long, how many of their tokens and ends of turn were lost, and how many rows were dropped."""

    rows: int = 0
    tokens_lost: int = 0
    end_of_turns_lost: int = 0
    dropped: int = 0


def apply_policy(
    encoded: Encoded, capacity: int, policy: str, losses: OverlengthLosses, turns: Sequence[TurnStart] = ()
) -> list[Encoded]:
    """The rows to use instead of a row longer than `capacity`; none if nothing that is left is supervised.

    Args:
        policy: `drop` (none), `truncate` (its beginning) or `split` (all of it).
        losses: updated in place.
        turns: where the parts of a split row may begin, in order.
    """
    length = len(encoded.input_ids)
    places = turn_windows(encoded, capacity, turns) if policy == "split" else [(0, capacity)] if policy == "truncate" else []
    kept = [(place, slice_row(encoded, place)) for place in places]
    kept = [(place, row) for place, row in kept if row.supervised]
    losses.rows += 1
    losses.dropped += not kept
    losses.tokens_lost += length - sum(stop - start for (start, stop), _ in kept)
    ends = [end for _, end in encoded.supervised if not any(start < end <= stop for (start, stop), _ in kept)]
    losses.end_of_turns_lost += len(ends)
    return [row for _, row in kept]


def turn_starts(rendered: RenderedRow, tokens: Tokens | EncodedTokens) -> list[TurnStart]:
    """The turns of a row after the first, without the spaces before them."""
    text = rendered.text
    starts = [(len(text) - len(text[start:].lstrip()), by_user) for start, by_user in rendered.turn_starts]
    return [TurnStart(tokens.overlapping((start, start + 1))[0], by_user) for start, by_user in starts if start < len(text)]


def turn_windows(encoded: Encoded, capacity: int, turns: Sequence[TurnStart]) -> list[Span]:
    """Consecutive spans of at most `capacity` tokens that begin at turns, the user's if possible.

    Only a turn longer than `capacity` is cut inside. A last span of a single token has nothing to learn and is left out.
    """
    length = len(encoded.input_ids)
    found = []
    start = 0
    while length - start > capacity:
        stop = start + capacity
        fitting = [
            turn
            for number, turn in enumerate(turns)
            if start < turn.token <= stop
            and (stop_of(turns, number, length) - turn.token <= capacity or slice_row(encoded, (start, turn.token)).supervised)
        ]
        cuts = [turn.token for turn in fitting if turn.by_user] or [turn.token for turn in fitting] or [stop]
        found.append((start, cuts[-1]))
        start = cuts[-1]
    return [*found, (start, length)] if length - start > 1 else found


def stop_of(turns: Sequence[TurnStart], number: int, length: int) -> int:
    """Where a turn ends; for the user's, where the answers to it end."""
    return next((turn.token for turn in turns[number + 1 :] if turn.by_user or not turns[number].by_user), length)


def token_windows(length: int, capacity: int) -> list[Span]:
    """Consecutive spans of at most `capacity` tokens, without a last one of a single token: it has nothing to learn."""
    found = [(start, min(start + capacity, length)) for start in range(0, length, capacity)]
    return [(start, stop) for start, stop in found if stop - start > 1]


def slice_row(encoded: Encoded, place: Span) -> Encoded:
    """A span of a row as a row of its own; its first token is not supervised."""
    start, stop = place
    within = [(max(first - start, 1), min(last, stop) - start) for first, last in encoded.supervised]
    return Encoded(encoded.input_ids[start:stop], [(first, last) for first, last in within if first < last])
