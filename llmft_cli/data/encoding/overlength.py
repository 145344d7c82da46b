"""What becomes of rows that are longer than a sequence, and what is lost by it."""

from __future__ import annotations

from dataclasses import dataclass

from llmft_cli.data.encoding.encoder import Encoded
from llmft_cli.data.encoding.tokenising import Span


@dataclass
class Losses:
    """How many rows were too long, and the tokens and ends of turn of theirs that are not learned."""

    rows: int = 0
    tokens_lost: int = 0
    end_of_turns_lost: int = 0


def fitted(encoded: Encoded, capacity: int, policy: str, losses: Losses) -> list[Encoded]:
    """The rows that a row longer than `capacity` becomes.

    Args:
        policy: `drop` (none), `truncate` (its beginning) or `split` (all of it).
    """
    length = len(encoded.input_ids)
    places = {"drop": [], "truncate": [(0, capacity)], "split": windows(length, capacity)}[policy]
    kept = [(place, cut(encoded, place)) for place in places]
    kept = [(place, row) for place, row in kept if row.supervised]
    losses.rows += 1
    losses.tokens_lost += length - sum(stop - start for (start, stop), _ in kept)
    ends = [end for _, end in encoded.supervised if not any(start < end <= stop for (start, stop), _ in kept)]
    losses.end_of_turns_lost += len(ends)
    return [row for _, row in kept]


def windows(length: int, capacity: int) -> list[Span]:
    """Consecutive stretches of at most `capacity` tokens; a last one of a single token has nothing to learn."""
    found = [(start, min(start + capacity, length)) for start in range(0, length, capacity)]
    return [(start, stop) for start, stop in found if stop - start > 1]


def cut(encoded: Encoded, place: Span) -> Encoded:
    """A stretch of a row as a row of its own, whose first token nothing predicts."""
    start, stop = place
    within = [(max(first - start, 1), min(last, stop) - start) for first, last in encoded.supervised]
    return Encoded(encoded.input_ids[start:stop], [(first, last) for first, last in within if first < last])
