"""A chat template's own text around messages, which locates each message in the rendered text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llmft_cli.data.encoding.rendered import Ending, RenderedRow, check_ending
from llmft_cli.data.encoding.tokenising import Span
from llmft_cli.data.forms.examples import Conversation

# Private-use characters: no template produces or tests for them.
PLACEHOLDER = "\ue0f0{}\ue0f1"
PLACEHOLDERS = re.compile("\ue0f0(\\d+)\ue0f1")
THINKING_END = "</think>"


@dataclass(frozen=True)
class TemplateSkeleton:
    """A template's own text around messages: `texts[i]` precedes message `order[i]`, and the last text ends the row.

    Attributes:
        controls: for each text, where its special tokens are.
        endings: for each text, the end of turn that it begins with, or None.
        leads: for each message, how many characters before it are missing from its prompt, so that the
            model has to write them: the space after Llama-2's `[/INST]`, Qwen3's empty thinking. None: the prompt renders
            earlier messages in another way.
        introductions: for each message, as `introductions_of`.
        exact: numbers of the answers that stand here as after their own prompt: the same text up to the end of turn.
        beyond: for each message what only its prompt has, such as the beginning of thinking.
    """

    texts: list[str]
    order: list[int]
    controls: list[list[Span]]
    endings: list[Ending | None]
    leads: list[int | None]
    introductions: list[int | None]
    exact: frozenset[int]
    beyond: Mapping[int, str]

    def locate(self, conversation: Conversation, text: str, learned: Collection[int] | None) -> RenderedRow | None:
        """The row with its messages located in the rendered text; None if the text does not match this skeleton.

        A learned answer has to be whole; of the others, the template may leave out the thinking.

        Raises:
            RowError: as `check_ending`.
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
                history = messages[number]["role"] == "assistant" and learned is not None and number not in learned
                forms = [*rendered_forms(content), *(forms_without_thinking(content) if history else ())]
                content = next((form for form in forms if text.startswith(form + after, position)), None)
                if content is None:
                    return None
            end = position + len(content)
            if (introduction := self.introductions[index - 1]) is not None:
                turns.append((position - introduction, messages[number]["role"] == "user"))
            lead = self.leads[index - 1]
            if number == first_answer:
                prompt_length = position - (lead or 0)
            if learned is not None and number in learned:
                if lead is None:
                    return None
                ending = check_ending(self.endings[index], number, messages)
                spans.append((position - lead, end + ending.stop))
            special_spans += [(end + start, end + stop) for start, stop in self.controls[index]]
            position = end + len(after)
        if position != len(text):
            return None
        head = self.controls[0][-1][1] if self.controls[0] else 0
        return RenderedRow(text, special_spans, None if learned is None else spans, head, prompt_length, turns)


def introductions_of(roles: Sequence[str], texts: Sequence[str], endings: Sequence[Ending | None]) -> list[int | None]:
    """For each message how many characters before it introduce it, such as its role; None where no turn of its own begins.

    Args:
        roles: of the messages in rendered order.
        texts: of the template, as in `TemplateSkeleton`.
        endings: for each text, the end of the turn before, or else the first token.
    """
    found: list[int | None] = []
    for number, (text, ending) in enumerate(zip(texts[:-1], endings[:-1], strict=True)):
        rest = len(text[ending.stop if ending else 0 :].lstrip())
        before = roles[number - 1] if number else ""
        if not before or (before == "system" and ending is None):  # Llama-2 writes the system message inside the user's turn
            found.append(None)
        else:  # a single token that does not end an answer, such as `[/INST]`, introduces the next message
            found.append(rest or (0 if before == "assistant" else len(text)))
    return found


def rendered_forms(content: str) -> Sequence[str]:
    """How templates may render a message: as it is, or trimmed."""
    return content, content.strip(), content.rstrip(), content.lstrip()


def forms_without_thinking(content: str) -> Sequence[str]:
    """How templates may render an answer that leaves out the thinking before it."""
    answer = content.split(THINKING_END)[-1]
    return answer, answer.strip(), answer.lstrip("\n")
