"""What the rendering of a row gives: texts ready to tokenise, with the spans that are special or supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.examples import Message, RowError


class RenderedRow(NamedTuple):
    """A row as rendered text, ready to tokenise. Spans are in characters.

    Attributes:
        special_spans: where the template's special tokens are.
        learned_spans: what is supervised; None: all of it.
        prefix_length: length of the beginning that many rows share; it ends with a special token.
        prompt_length: length of what comes before the first answer (`Conversation.first_answer`); 0 if there is none.
        turn_starts: where turns after the first begin, with the text that introduces them, and whether the user speaks.
    """

    text: str
    special_spans: list[Span]
    learned_spans: list[Span] | None
    prefix_length: int = 0
    prompt_length: int = 0
    turn_starts: Sequence[tuple[int, bool]] = ()


class RenderedExample(NamedTuple):
    """The rows that an example becomes: one, or several if its answers need different contexts.

    Attributes:
        left_out: what of the example the chat template leaves out, in words.
        beyond: what the prompt of a learned answer goes on with that the answer does not have; empty if it has all.
    """

    rows: list[RenderedRow]
    left_out: list[str]
    beyond: str = ""


@dataclass(frozen=True)
class Ending:
    """The end of turn that a template adds after an answer.

    Attributes:
        token: its text.
        stop: characters from the end of the answer to the end of the token.
        special: whether the tokenizer marks it as special, so that text in a message never becomes it.
    """

    token: str
    stop: int
    special: bool


def check_ending(ending: Ending | None, number: int, messages: Sequence[Message]) -> Ending:
    """The end of turn after message `number`.

    Raises:
        RowError: there is none, or it is not special and a message contains its text.
    """
    if ending is None:
        raise RowError(f"the chat template adds no end of turn after message {number + 1}")
    if not ending.special and any(ending.token in message["content"] for message in messages):
        raise RowError(f"a message contains {ending.token}, the end of turn, which the tokenizer does not mark as special")
    return ending


def common_prefix(first: str, second: str) -> str:
    """The longest common prefix of two texts."""
    if second.startswith(first):
        return first
    differing = (index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return first[: next(differing, min(len(first), len(second)))]
