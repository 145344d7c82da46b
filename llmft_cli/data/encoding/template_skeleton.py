"""A chat template's own text around messages, which locates each message in the rendered text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.formats import Conversation, Message, RowError

# Private-use characters: no template produces or tests for them.
PLACEHOLDER = "\ue0f0{}\ue0f1"
PLACEHOLDERS = re.compile("\ue0f0(\\d+)\ue0f1")
THINKING_END = "</think>"


class RenderedRow(NamedTuple):
    """A row as rendered text, ready to tokenise. Spans are in characters.

    Attributes:
        special_spans: where the template's special tokens are.
        learned_spans: what is supervised; None: all of it.
        prefix_length: length of the beginning that many rows share; it ends with a special token.
        prompt_length: length of what comes before the first answer (`Conversation.first_answer`); 0 if there is none.
        turn_starts: where each turn after the first begins, with the text that introduces it, and whether the user speaks
            in it; empty if that is not known.
    """

    text: str
    special_spans: list[Span]
    learned_spans: list[Span] | None
    prefix_length: int = 0
    prompt_length: int = 0
    turn_starts: Sequence[tuple[int, bool]] = ()


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


@dataclass(frozen=True)
class TemplateSkeleton:
    """A template's own text around messages: `texts[i]` precedes message `order[i]`, and the last text ends the row.

    Attributes:
        controls: for each text, where its special tokens are.
        endings: for each text, the end of turn that it begins with, or None.
        leads: for each message, how many characters before it are missing from its prompt, so that the
            model has to write them: the space after Llama-2's `[/INST]`, Qwen3's empty thinking.
        introductions: for each message, as `introductions_of`.
    """

    texts: list[str]
    order: list[int]
    controls: list[list[Span]]
    endings: list[Ending | None]
    leads: list[int]
    introductions: list[int | None]

    def locate(self, conversation: Conversation, text: str, learned: Collection[int] | None) -> RenderedRow | None:
        """The row with its messages located in the rendered text; None if the text does not match this skeleton.

        Raises:
            RowError: as `end_of_turn_after`.
        """
        if not text.startswith(self.texts[0]):
            return None
        messages, first_answer, prompt_length = conversation.messages, conversation.first_answer, 0
        special_spans = list(self.controls[0])
        spans: list[Span] = []
        turns: list[tuple[int, bool]] = []
        position = len(self.texts[0])
        for index, number in enumerate(self.order, 1):
            content, after = messages[number]["content"], self.texts[index]
            if not text.startswith(content + after, position):
                forms = rendered_forms(content)
                content = next((form for form in forms if text.startswith(form + after, position)), None)
                if content is None:
                    return None
            end = position + len(content)
            if (introduction := self.introductions[index - 1]) is not None:
                turns.append((position - introduction, messages[number]["role"] == "user"))
            if number == first_answer:
                prompt_length = position - self.leads[index - 1]
            if learned is not None and number in learned:
                ending = end_of_turn_after(self.endings[index], number, messages)
                spans.append((position - self.leads[index - 1], end + ending.stop))
            special_spans += [(end + start, end + stop) for start, stop in self.controls[index]]
            position = end + len(after)
        if position != len(text):
            return None
        head = self.controls[0][-1][1] if self.controls[0] else 0
        return RenderedRow(text, special_spans, None if learned is None else spans, head, prompt_length, turns)


def introductions_of(roles: Sequence[str], texts: Sequence[str], endings: Sequence[Ending | None]) -> list[int | None]:
    """For each message how many characters before it introduce it, such as its role; None where no turn of its own begins.

    A text of only one token, such as `[/INST]`, introduces the message after it; it does not end the one before.

    Args:
        roles: of the messages in rendered order.
        texts, endings: of the template, as in `TemplateSkeleton`.
    """
    found: list[int | None] = []
    for number, (text, ending) in enumerate(zip(texts[:-1], endings[:-1], strict=True)):
        # Llama-2 writes the system message inside the user's turn.
        inside = number == 0 or (roles[number - 1] == "system" and ending is None)
        found.append(None if inside else len(text[ending.stop if ending else 0 :].lstrip()) or len(text))
    return found


def end_of_turn_after(ending: Ending | None, number: int, messages: Sequence[Message]) -> Ending:
    """The end of turn after message `number`.

    Raises:
        RowError: there is none, or it is not special and a message contains its text.
    """
    if ending is None:
        raise RowError(f"the chat template adds no end of turn after message {number + 1}")
    if not ending.special and any(ending.token in message["content"] for message in messages):
        raise RowError(f"a message contains {ending.token}, the end of turn, which the tokenizer does not mark as special")
    return ending


def rendered_forms(content: str) -> list[str]:
    """How templates may render a message: as it is, trimmed, or without the thinking before the answer."""
    answer = content.split(THINKING_END)[-1]
    return list(
        dict.fromkeys(
            [content, content.strip(), content.rstrip(), content.lstrip(), answer, answer.strip(), answer.lstrip("\n")]
        )
    )
