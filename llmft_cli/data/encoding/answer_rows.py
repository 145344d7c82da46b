"""Which answers of a conversation are learned in which rows.

A template may render an answer in another way once other messages follow: without its thinking, or with another end of
turn. Such an answer is learned in a row that ends with it, in exactly the context that generation gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

AUTO, ON, OFF = "auto", "on", "off"
# The number of messages of a row, and the answers that are learned in it.
AnswerRow = tuple[int, list[int]]


def answer_rows(answers: Sequence[int], total: int, mode: str, is_exact: Callable[[int, int], bool]) -> list[AnswerRow]:
    """Rows that have every answer once, in order.

    Args:
        answers: numbers of the learned messages, from 0, in order; at least one.
        total: messages of the conversation.
        mode: `auto` (as few rows as the template allows), `on` (a row for each answer), `off` (one row).
        is_exact: whether answer `number` stands in a row of `count` messages as after its own prompt.
    """
    if mode == OFF:
        return [(total, list(answers))]
    if mode == ON:
        return [(number + 1, [number]) for number in answers]
    rows: list[AnswerRow] = []
    left = list(answers)
    count = total
    while left:
        learned = [number for number in left if number == count - 1 or is_exact(number, count)]
        if learned:
            rows.append((count, learned))
            left = [number for number in left if number not in learned]
        count = left[-1] + 1 if left else 0
    return rows[::-1]
