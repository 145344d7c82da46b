"""Rows longer than a sequence: drops, truncates or splits them, and counts what is lost."""

from __future__ import annotations

from dataclasses import dataclass

from llmft_cli.data.encoding.encoder import Encoded
from llmft_cli.data.encoding.tokenising import Span


@dataclass
class OverlengthLosses:
    """How many rows were too long, and how many of their tokens and ends of turn were lost."""

    rows: int = 0
    tokens_lost: int = 0
    end_of_turns_lost: int = 0


def apply_policy(encoded: Encoded, capacity: int, policy: str, losses: OverlengthLosses) -> list[Encoded]:
    """The rows to use instead of a row longer than `capacity`.

    Args:
        policy: `drop` (none), `truncate` (its beginning) or `split` (all of it).
        losses: updated in place.
    """
    length = len(encoded.input_ids)
    places = {"drop": [], "truncate": [(0, capacity)], "split": token_windows(length, capacity)}[policy]
    kept = [(place, slice_row(encoded, place)) for place in places]
    kept = [(place, row) for place, row in kept if row.supervised]
    losses.rows += 1
    losses.tokens_lost += length - sum(stop - start for (start, stop), _ in kept)
    ends = [end for _, end in encoded.supervised if not any(start < end <= stop for (start, stop), _ in kept)]
    losses.end_of_turns_lost += len(ends)
    return [row for _, row in kept]


def token_windows(length: int, capacity: int) -> list[Span]:
    """Consecutive spans of at most `capacity` tokens, without a last one of a single token: it has nothing to learn."""
    found = [(start, min(start + capacity, length)) for start in range(0, length, capacity)]
    return [(start, stop) for start, stop in found if stop - start > 1]


def slice_row(encoded: Encoded, place: Span) -> Encoded:
    """A span of a row as a row of its own; its first token is not supervised."""
    start, stop = place
    within = [(max(first - start, 1), min(last, stop) - start) for first, last in encoded.supervised]
    return Encoded(encoded.input_ids[start:stop], [(first, last) for first, last in within if first < last])
