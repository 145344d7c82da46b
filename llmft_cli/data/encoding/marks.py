"""Placeholders in the place of what messages say: which text stands where, whatever it says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from llmft_cli.data.encoding.template_skeleton import PLACEHOLDER, THINKING_END
from llmft_cli.data.forms.examples import THINKING_KEYS, Message


class Marks:
    """Placeholders for the texts of messages, by which they are found in the rendered text.

    Args:
        learned: numbers of the messages that have to keep their thinking; None: all.
        start: the number of the first placeholder.

    Attributes:
        texts, names, numbers: what each placeholder stands for, what it is in words, and the number of its message.
    """

    def __init__(self, learned: Collection[int] | None, start: int = 0) -> None:
        self._learned = learned
        self._start = start
        self.texts: list[str] = []
        self.names: list[str] = []
        self.numbers: list[int] = []

    def message(self, message: Message, number: int) -> Message:
        """A message with placeholders for its texts."""
        place = f"message {number + 1}"
        before = len(self.texts)
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
        self.numbers += [number] * (len(self.texts) - before)
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
        return PLACEHOLDER.format(self._start + len(self.texts) - 1)


def pieces_of(content: str) -> Sequence[str]:
    """The parts of an answer's content, trimmed: its thinking, if it has some between tags, and what is said."""
    *thinking, answer = content.split(THINKING_END)
    return [*(piece.strip().removeprefix("<think>").strip() for piece in thinking), answer.strip()]
