"""A chat template's own text around messages, which locates each message in the rendered text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
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
        exact: numbers of the answers that stand here as after their own prompt: the same text up to the end of turn.
    """

    texts: list[str]
    order: list[int]
    controls: list[list[Span]]
    endings: list[Ending | None]
    leads: list[int | None]
    exact: frozenset[int]

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
        return RenderedRow(text, special_spans, None if learned is None else spans, head, prompt_length)


def rendered_forms(content: str) -> Sequence[str]:
    """How templates may render a message: as it is, or trimmed."""
    return content, content.strip(), content.rstrip(), content.lstrip()


def forms_without_thinking(content: str) -> Sequence[str]:
    """How templates may render an answer that leaves out the thinking before it."""
    answer = content.split(THINKING_END)[-1]
    return answer, answer.strip(), answer.lstrip("\n")
