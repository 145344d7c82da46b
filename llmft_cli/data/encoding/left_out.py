"""What of a conversation a chat template leaves out of the rendered text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from llmft_cli.data.encoding.answers_by_prompt import pieces_of
from llmft_cli.data.encoding.renderer import Renderer
from llmft_cli.data.encoding.template_skeleton import PLACEHOLDER, PLACEHOLDERS, THINKING_END
from llmft_cli.data.forms.examples import THINKING_KEYS, Conversation, Message, RowError

# Templates put texts into JSON, and trim or join them.
IRRELEVANT = re.compile(r"[\s\\\"']+")
TOOLS = "the tools"
PART_OF = "a part of "


def left_out(
    conversation: Conversation, learned: Collection[int] | None, counts: Sequence[int], texts: Sequence[str], renderer: Renderer
) -> list[str]:
    """What is in none of the rows of a conversation, in words.

    Each text is replaced by a placeholder of its own, which must appear; so short texts are not taken for found.
    An answer that is not learned may lose its thinking, as it does when the model is used.

    Args:
        learned: numbers of the learned messages; None: all.
        counts: how many messages each row has.
        texts: the rendered rows.
    """
    marks = Marks(learned)
    marked = [marks.message(message, number) for number, message in enumerate(conversation.messages)]
    squeezed = [IRRELEVANT.sub("", text) for text in texts]
    whole = [any(IRRELEVANT.sub("", text) in row for row in squeezed) for text in marks.texts]
    seen: set[int] = set()
    for count in counts:
        try:
            seen |= {int(number) for number in PLACEHOLDERS.findall(renderer.whole(marked[:count], conversation.tools))}
        except RowError:  # it checks what the messages say
            seen |= {number for number, is_there in enumerate(whole) if is_there}
    missing = [
        name if number not in seen else PART_OF + name
        for number, name in enumerate(marks.names)
        if number not in seen or not whole[number]
    ]
    tools = conversation.tools and ignores_tools(conversation, renderer)
    return [*([TOOLS] if tools else []), *dict.fromkeys(missing)]


class Marks:
    """Placeholders for the texts of messages.

    Attributes:
        texts, names: what each placeholder stands for, and what it is in words.
    """

    def __init__(self, learned: Collection[int] | None) -> None:
        self._learned = learned
        self.texts: list[str] = []
        self.names: list[str] = []

    def message(self, message: Message, number: int) -> Message:
        """A message with placeholders for its texts."""
        place = f"message {number + 1}"
        marked = {**message, "content": self._content(message, number, place)}
        for key in THINKING_KEYS:
            if key in message and self._keeps_thinking(number):
                marked[key] = self._mark(message[key], f"the {key} of {place}")
        if "tool_calls" in message:
            name = f"the tool calls in {place}"
            marked["tool_calls"] = [
                {**call, "function": {name_: self._value(value, name) for name_, value in call["function"].items()}}
                for call in message["tool_calls"]
            ]
        return marked

    def _content(self, message: Message, number: int, place: str) -> str:
        content: str = message["content"]
        if message["role"] == "tool":
            return self._mark(content, f"the tool result in {place}")
        name = f"the content of {place}" if "tool_calls" in message else f"{place} ({message['role']})"
        if message["role"] != "assistant" or THINKING_END not in content:
            return self._mark(content, name)
        *thinking, answer = pieces_of(content)
        if not self._keeps_thinking(number):
            return self._mark(answer, name)
        thoughts = [self._mark(piece, f"the thinking of {place}") for piece in thinking]
        return "".join(f"<think>\n{thought}\n{THINKING_END}\n\n" for thought in thoughts) + self._mark(answer, name)

    def _keeps_thinking(self, number: int) -> bool:
        return self._learned is None or number in self._learned

    def _value(self, value: Any, name: str) -> Any:
        """A value of a call with a placeholder for each text in it."""
        if isinstance(value, str):
            return self._mark(value, name)
        if isinstance(value, list):
            return [self._value(item, name) for item in value]
        return {key: self._value(item, name) for key, item in value.items()} if isinstance(value, dict) else value

    def _mark(self, text: str, name: str) -> str:
        if not text.strip():
            return text
        self.texts.append(text)
        self.names.append(name)
        return PLACEHOLDER.format(len(self.texts) - 1)


def ignores_tools(conversation: Conversation, renderer: Renderer) -> bool:
    try:
        without = renderer.render(conversation.messages, False, None)
        return without == renderer.render(conversation.messages, False, conversation.tools)
    except RowError:  # the template rejects the calls without the tools, so it does read them
        return False
