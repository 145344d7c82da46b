"""The thinking that a model writes before its answer, between <think> and </think>.

Answers are scored without it. The rule is that of the models' own chat templates, which drop it from earlier turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENING, CLOSING = "<think>", "</think>"
# Enough tokens for the opening tag, in any vocabulary, and the white space around it.
TAG_TOKENS = 16
RULE = (
    "Answers are scored without the thinking before them: everything up to </think>. "
    "An answer that ends before </think> counts as empty. Expected answers are treated in the same way."
)


def without_thinking(text: str) -> str:
    """The answer after all thinking; the text unchanged if there is none. Thinking that does not end leaves nothing."""
    before, closed, after = text.partition(CLOSING)
    # Where only the end is there, the beginning was in the prompt.
    rest = after.strip() if closed and OPENING not in before else text
    while rest.lstrip().startswith(OPENING):
        rest = rest.partition(CLOSING)[2].strip()
    return rest


def without_begun_thinking(text: str, cut: bool) -> str:
    """As `without_thinking`, for a prompt that ends with <think>.

    An answer without </think> is thinking if it was cut. Otherwise the model ended it: it has answered without thinking.
    """
    return "" if cut and CLOSING not in text else without_thinking(text)


def expected_without_thinking(expected: Sequence[str]) -> list[str]:
    """Expected answers without thinking; one that is nothing else is kept."""
    return [without_thinking(text) or text for text in expected]


def begins_thinking(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> bool:
    """Whether the template has written <think> at the end of a prompt, given as token ids."""
    ending: str = tokenizer.decode(list(prompt[-TAG_TOKENS:]), skip_special_tokens=False)
    return ending.rstrip().endswith(OPENING)
