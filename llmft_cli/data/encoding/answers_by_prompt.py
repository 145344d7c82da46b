"""Locates the answers of a conversation by rendering each after its own prompt, as generation does.

For conversations whose rendering depends on what is said: tools, thinking, and templates that read the contents.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from llmft_cli.data.encoding.marks import Marks, pieces_of
from llmft_cli.data.encoding.rendered import RenderedRow, check_ending, common_prefix
from llmft_cli.data.encoding.renderer import Renderer
from llmft_cli.data.encoding.template_skeleton import PLACEHOLDERS, forms_without_thinking, rendered_forms
from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.examples import Conversation, RowError

# Above the numbers of the placeholders that a conversation may have already.
OTHER_MARKS = 1_000_000


@dataclass(frozen=True)
class Answer:
    """An answer in the text of a conversation that ends with it; `start` and `stop` are characters.

    Attributes:
        token: the end of turn, whose end is `stop`.
        beyond: what only its prompt has, such as the beginning of thinking.
    """

    text: str
    start: int
    stop: int
    token: str
    beyond: str


class AnswersByPrompt:
    """The answers of one conversation.

    Args:
        learned: numbers of the learned messages; None: the whole text is learned.

    Raises:
        RowError: a message contains the text of a special token, which could not be told from the template's own.
    """

    def __init__(self, conversation: Conversation, learned: Collection[int] | None, renderer: Renderer) -> None:
        self.conversation = conversation
        self.learned = learned
        self.renderer = renderer
        self._messages, self._tools = conversation.messages, conversation.tools
        self._wholes: dict[int, str] = {}
        self._prompts: dict[int, str | None] = {}
        self._answers: dict[int, Answer] = {}
        refuse_spelled_tokens(conversation, renderer)

    def whole(self, count: int) -> str:
        """The first messages as the template renders them, up to the end of the last turn."""
        if count not in self._wholes:
            self._wholes[count] = self.renderer.whole(self._messages[:count], self._tools)
        return self._wholes[count]

    def text(self, count: int) -> str:
        """The text of a row of the first messages: `whole`, but a learned answer at its end stands after its own prompt."""
        return self.answer(count - 1).text if count - 1 in (self.learned or ()) else self.whole(count)

    def answer(self, number: int) -> Answer:
        """An answer after its own prompt, with the end of turn.

        Raises:
            RowError: it cannot be found, or has no end of turn.
        """
        if number not in self._answers:
            self._answers[number] = self._located(number)
        return self._answers[number]

    def is_exact(self, number: int, count: int) -> bool:
        """Whether a row of `count` messages has the answer as after its own prompt."""
        answer = self.answer(number)
        return self.text(count).startswith(answer.text[: answer.stop])

    def row(self, count: int, learned: Collection[int] | None) -> RenderedRow:
        """The row of the first `count` messages in which these answers are learned; None: all of its text is."""
        text = self.text(count)
        spans = None if learned is None else [self._span_in(number, count) for number in sorted(learned)]
        special = [match.span() for match in self.renderer.control.finditer(text)]
        return RenderedRow(text, special, spans, 0, self._prompt_length(text), self._turn_starts(count, learned, spans))

    def _turn_starts(self, count: int, learned: Collection[int] | None, spans: list[Span] | None) -> list[tuple[int, bool]]:
        """The turns that follow learned answers; where the others begin is not known."""
        roles = [message["role"] for message in self.conversation.messages[:count]]
        ends = zip(sorted(learned or ()), spans or (), strict=True)
        return [(stop, roles[number + 1] == "user") for number, (_, stop) in ends if number + 1 < count]

    def _located(self, number: int) -> Answer:
        whole = self.whole(number + 1)
        marked = self._marked(number, number + 1)
        first = len(common_prefix(whole, marked))
        text, start, beyond = self._after_prompt(number, whole, first)
        tail = PLACEHOLDERS.split(marked)[-1]
        # Up to here the answer's own texts reach.
        end = len(text) - len(tail) if text.endswith(tail) and tail != marked else self._end_of_content(number, text, first)
        ending = check_ending(self.renderer.ending_in(text, end), number, self._messages)
        check_found(first - (start - (len(text) - len(whole))), number)
        return Answer(text, start, ending.stop, ending.token, beyond)

    def _after_prompt(self, number: int, whole: str, first: int) -> tuple[str, int, str]:
        """The text with the answer after its own prompt, where it starts there, and what only the prompt has.

        Args:
            whole: the conversation up to the answer, which may render earlier messages in another way than the prompt.
            first: where the first of the answer's texts starts in it.
        """
        prompt = self._prompt(number)
        if prompt is None:
            return whole, first, ""
        if whole.startswith(prompt):
            return whole, len(prompt), ""
        before = self.renderer.render(self._messages[:number], False, self._tools)
        if not prompt.startswith(before):
            return whole, first, ""
        header = prompt.removeprefix(before)
        place = whole.rfind(header, 0, first) if header else -1
        if whole.startswith(before) and place >= len(before):
            return whole, place + len(header), ""
        if not header or whole.startswith(before):  # the turn has another beginning, such as one without thinking
            shared = min(first, self.renderer.end_of_common_tokens(whole, prompt))
            return whole, shared, prompt[shared:]
        return (whole, first, "") if place < 0 else (prompt + whole[place + len(header) :], len(prompt), "")

    def _span_in(self, number: int, count: int) -> Span:
        """Where an answer is learned in a row of `count` messages, which may have it in another form than after its prompt."""
        answer = self.answer(number)
        if self.is_exact(number, count):
            return answer.start, answer.stop
        text, prompt = self.text(count), self._prompt(number)
        first = len(common_prefix(text, self._marked(number, count)))
        start = len(prompt) if prompt is not None and text.startswith(prompt) else first
        if "tool_calls" in self._messages[number]:
            return start, check_found(text.find(answer.token, first), number) + len(answer.token)
        end = self._end_of_content(number, text, first)
        found = self.renderer.added.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
        ending = found and self.renderer.ending(found.group(), found.end())
        return start, check_ending(ending, number, self._messages).stop

    def _end_of_content(self, number: int, text: str, first: int) -> int:
        content = self._messages[number]["content"]
        forms = [*rendered_forms(content), *forms_without_thinking(content)]
        found = max([len(form) for form in forms if text.startswith(form, first)], default=-1)
        if found < 0:  # after thinking that the template sets in its own way
            return check_found(text.rfind(pieces_of(content)[-1], first), number) + len(pieces_of(content)[-1])
        return first + found

    def _marked(self, number: int, count: int) -> str:
        """The text of the first messages with placeholders for the texts of one."""
        marked = Marks(None, OTHER_MARKS).message(self._messages[number], number)
        try:
            return self.renderer.whole([*self._messages[:number], marked, *self._messages[number + 1 : count]], self._tools)
        except RowError as error:
            raise RowError(f"message {number + 1} cannot be located: with another text, {error}") from error

    def _prompt(self, number: int) -> str | None:
        """The prompt of an answer; None if the template renders none there."""
        if number not in self._prompts:
            try:
                self._prompts[number] = self.renderer.render(self._messages[:number], True, self._tools)
            except RowError:
                self._prompts[number] = None
        return self._prompts[number]

    def _prompt_length(self, text: str) -> int:
        first = self.conversation.first_answer
        before = self._prompt(first) if first is not None else None
        return len(before) if before is not None and text.startswith(before) else 0


def refuse_spelled_tokens(conversation: Conversation, renderer: Renderer) -> None:
    """Raises RowError if a message contains the text of a special token."""
    if renderer.control.search(json.dumps([conversation.messages, conversation.tools], ensure_ascii=False)):
        raise RowError("a message contains the text of a special token, and with this template messages cannot be located")


def check_found(place: int, number: int) -> int:
    """The place of a message in the rendered text; raises RowError if it is negative."""
    if place < 0:
        raise RowError(f"message {number + 1} cannot be found in the text rendered by the chat template")
    return place
