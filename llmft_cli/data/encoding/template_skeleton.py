"""A chat template's own text around the messages of a conversation, and what it says of where each message lies."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.formats import Message, RowError

# Characters for private use: no template produces or looks for them.
PLACEHOLDER = "\ue0f0{}\ue0f1"
PLACEHOLDERS = re.compile("\ue0f0(\\d+)\ue0f1")
THINKING_END = "</think>"


class Layout(NamedTuple):
    """A text to tokenise: where its special tokens stand, and the character spans that are learned (None: all of it).

    `head` is how many characters it begins with that many rows begin with, up to the end of a special token.
    """

    text: str
    owned: list[Span]
    spans: list[Span] | None
    head: int = 0


@dataclass(frozen=True)
class Ending:
    """The end of turn that a template writes after an answer.

    Attributes:
        token: its spelling.
        stop: how many of the template's characters after the answer it takes, with what stands before it.
        special: whether the tokenizer marks it special, so that no message can spell it.
    """

    token: str
    stop: int
    special: bool


@dataclass(frozen=True)
class Skeleton:
    """A template's own text around messages: `texts[i]` stands before message `order[i]`, the last one at the end.

    Attributes:
        controls: for each text where special tokens stand in it.
        endings: for each text the end of turn that it begins with, or None.
        leads: for each message how many of the characters before it a prompt for it does not hold, so that the
            model has to write them: the space after Llama-2's `[/INST]`, Qwen3's empty thinking.
    """

    texts: list[str]
    order: list[int]
    controls: list[list[Span]]
    endings: list[Ending | None]
    leads: list[int]

    def lay_out(self, messages: Sequence[Message], text: str, learned: Collection[int] | None) -> Layout | None:
        """Where the messages lie in the rendered text, or None where it does not follow this skeleton.

        Raises:
            RowError: as `end_of_turn_after`.
        """
        if not text.startswith(self.texts[0]):
            return None
        owned = list(self.controls[0])
        spans: list[Span] = []
        position = len(self.texts[0])
        for index, number in enumerate(self.order, 1):
            content, after = messages[number]["content"], self.texts[index]
            if not text.startswith(content + after, position):
                forms = rendered_forms(content)
                content = next((form for form in forms if text.startswith(form + after, position)), None)
                if content is None:
                    return None
            end = position + len(content)
            if learned is not None and number in learned:
                ending = end_of_turn_after(self.endings[index], number, messages)
                spans.append((position - self.leads[index - 1], end + ending.stop))
            owned += [(end + start, end + stop) for start, stop in self.controls[index]]
            position = end + len(after)
        if position != len(text):
            return None
        head = self.controls[0][-1][1] if self.controls[0] else 0
        return Layout(text, owned, None if learned is None else spans, head)


def end_of_turn_after(ending: Ending | None, number: int, messages: Sequence[Message]) -> Ending:
    """The end of turn after message `number`.

    Raises:
        RowError: there is none, or a message spells it, which cannot be kept out of the ids where it is not special.
    """
    if ending is None:
        raise RowError(f"the chat template writes no end of turn after message {number + 1}")
    if not ending.special and any(ending.token in message["content"] for message in messages):
        raise RowError(f"a message spells {ending.token}, which ends a turn here and is not marked special in the tokenizer")
    return ending


def rendered_forms(content: str) -> list[str]:
    """What templates make of a message's text: as it is, trimmed, or without the thinking before the answer."""
    answer = content.split(THINKING_END)[-1]
    return list(
        dict.fromkeys(
            [content, content.strip(), content.rstrip(), content.lstrip(), answer, answer.strip(), answer.lstrip("\n")]
        )
    )
