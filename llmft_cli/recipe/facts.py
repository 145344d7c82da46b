"""What a recipe is chosen from: the model's width, and the rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What is known before the first step.

    Attributes:
        hidden_size: the model's width.
        rows, tokens, supervised_tokens: of the training rows, of all of them together.
        longest_row_tokens: of the longest training row.
        held_out_rows, held_out_tokens: 0 if none are held out.
    """

    hidden_size: int
    rows: int
    tokens: int
    supervised_tokens: int
    longest_row_tokens: int
    held_out_rows: int
    held_out_tokens: int
