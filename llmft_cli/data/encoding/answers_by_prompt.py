"""Locates the answers of a conversation by rendering each after its own prompt, as generation does.

For conversations whose rendering depends on what is said: tools, thinking, and templates that read the contents.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llmft_cli.data.encoding.rendered import RenderedRow, check_ending, common_prefix
from llmft_cli.data.encoding.renderer import Renderer
from llmft_cli.data.encoding.template_skeleton import (
    PLACEHOLDER,
    THINKING_END,
    forms_without_thinking,
    rendered_forms,
)
from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.examples import Conversation, RowError

# Stands for the tokens of the template while a message is searched in a text.
HIDDEN = "\ue0f4"


@dataclass(frozen=True)
class Answer:
    """An answer in the text of the conversation that ends with it; `start` and `stop` are characters.

    Attributes:
        token: the end of turn, whose end is `stop`.
    """

    text: str
    start: int
    stop: int
    token: str


class AnswersByPrompt:
    """The answers of one conversation.

    Raises:
        RowError: a message contains the text of a special token, which could not be told from the template's own.
    """

    def __init__(self, conversation: Conversation, renderer: Renderer) -> None:
        self.conversation = conversation
        self._renderer = renderer
        self._wholes: dict[int, str] = {}
        self._answers: dict[int, Answer] = {}
        said = json.dumps([conversation.messages, conversation.tools], ensure_ascii=False)
        if renderer.control.search(said):
            raise RowError("a message contains the text of a special token, and with this template messages cannot be located")

    def whole(self, count: int) -> str:
        """The text of the first messages, up to the end of the last turn."""
        if count not in self._wholes:
            self._wholes[count] = self._renderer.whole(self.conversation.messages[:count], self.conversation.tools)
        return self._wholes[count]

    def answer(self, number: int) -> Answer:
        """An answer after its own prompt, with the end of turn.

        Raises:
            RowError: it cannot be found, or has no end of turn.
        """
        if number not in self._answers:
            text, start = self.whole(number + 1), self._start(number, number + 1)
            ending = self._renderer.ending_in(text, self._end_of_texts(number, text, start))
            ending = check_ending(ending, number, self.conversation.messages)
            self._answers[number] = Answer(text, start, ending.stop, ending.token)
        return self._answers[number]

    def is_exact(self, number: int, count: int) -> bool:
        """Whether a row of `count` messages has the answer as after its own prompt."""
        answer = self.answer(number)
        return self.whole(count).startswith(answer.text[: answer.stop])

    def row(self, count: int, learned: Collection[int] | None) -> RenderedRow:
        """The row of the first `count` messages in which these answers are learned; None: all of its text is."""
        text = self.whole(count)
        spans = None if learned is None else [self._span_in(number, count) for number in sorted(learned)]
        special = [match.span() for match in self._renderer.control.finditer(text)]
        return RenderedRow(text, special, spans, prompt_length=self._prompt_length(text))

    def _span_in(self, number: int, count: int) -> Span:
        """Where an answer is learned in a row of `count` messages, which may have it in another form than after its prompt."""
        answer = self.answer(number)
        if self.is_exact(number, count):
            return answer.start, answer.stop
        text, start = self.whole(count), self._start(number, count)
        if "tool_calls" in self.conversation.messages[number]:
            stop = text.find(answer.token, start) + len(answer.token)
            return start, check_found(stop - len(answer.token), number) + len(answer.token)
        end = self._end_of_content(number, count)
        found = self._renderer.added.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
        ending = found and self._renderer.ending(found.group(), found.end())
        return start, check_ending(ending, number, self.conversation.messages).stop

    def _start(self, number: int, count: int) -> int:
        """Where an answer starts in a row: after its prompt, or where its content does if the row has another beginning."""
        text, before = self.whole(count), self._prompt(number)
        if before is not None and text.startswith(before):
            return len(before)
        return len(common_prefix(text, self._with_placeholder(number, count)))

    def _end_of_content(self, number: int, count: int) -> int:
        text, content = self.whole(count), self.conversation.messages[number]["content"]
        start = len(common_prefix(text, self._with_placeholder(number, count)))
        forms = [*rendered_forms(content), *forms_without_thinking(content)]
        return start + check_found(max([len(form) for form in forms if text.startswith(form, start)], default=-1), number)

    def _with_placeholder(self, number: int, count: int) -> str:
        """The text of the first messages with a placeholder for the content of one."""
        messages = self.conversation.messages
        marked = {**messages[number], "content": PLACEHOLDER.format(0)}
        return self._renderer.whole([*messages[:number], marked, *messages[number + 1 : count]], self.conversation.tools)

    def _prompt(self, number: int) -> str | None:
        """The prompt of an answer; None if the template renders none there."""
        try:
            return self._renderer.render(self.conversation.messages[:number], True, self.conversation.tools)
        except RowError:
            return None

    def _prompt_length(self, text: str) -> int:
        first = self.conversation.first_answer
        before = self._prompt(first) if first is not None else None
        return len(before) if before is not None and text.startswith(before) else 0

    def _end_of_texts(self, number: int, text: str, start: int) -> int:
        """Where the texts of the last answer end: its content, and the names of the functions that it calls."""
        message = self.conversation.messages[number]
        hidden = self._renderer.added.sub(lambda match: HIDDEN * len(match.group()), text)
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        ends = []
        for piece in [*calls, *filter(None, pieces_of(message["content"])[-1:])]:
            place = hidden.rfind(piece, start)
            place = text.find(piece, start) if place < 0 else place
            ends.append(place + len(piece) if place >= 0 else -1)
        # What is said beside calls may be left out.
        return check_found(max(ends) if calls else ends[-1], number)


def check_found(place: int, number: int) -> int:
    """The place of a message in the rendered text; raises RowError if it is negative."""
    if place < 0:
        raise RowError(f"message {number + 1} cannot be found in the text rendered by the chat template")
    return place


def pieces_of(content: str) -> Sequence[str]:
    """The parts of an answer's content, trimmed: its thinking, if it has some between tags, and what is said."""
    *thinking, answer = content.split(THINKING_END)
    return [*(piece.strip().removeprefix("<think>").strip() for piece in thinking), answer.strip()]
