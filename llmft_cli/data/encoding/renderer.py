"""Renders conversations with a tokenizer's chat template, and knows how it ends turns and takes thinking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ModelError, first_line
from llmft_cli.data.encoding.rendered import Ending, common_prefix
from llmft_cli.data.encoding.template_skeleton import PLACEHOLDER, PLACEHOLDERS, THINKING_END
from llmft_cli.data.encoding.tokenising import Tokeniser, any_of
from llmft_cli.data.forms.examples import THINKING_KEYS, Message, RowError
from llmft_cli.data.forms.fields import valid_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION: Message = {"role": "user", "content": PLACEHOLDER.format(0)}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}],
}
RESULT: Message = {"role": "tool", "content": PLACEHOLDER.format(1), "tool_call_id": "call00000", "name": "f"}
PARAMETERS = {"type": "object", "properties": {}, "required": []}
TOOL = {"type": "function", "function": {"name": "f", "description": "f", "parameters": PARAMETERS}}


@dataclass(frozen=True)
class TurnEnds:
    """How a template ends an answer.

    Attributes:
        footer: what it adds after the end of turn if the conversation ends there.
        closing: if it has no end of turn, the token that begins the user's turn, at which generation stops; else empty.
        closing_of_calls: the same after tool calls, the token that begins their results.
    """

    footer: str = ""
    closing: str = ""
    closing_of_calls: str = ""


class Renderer:
    """A chat template.

    Attributes:
        control: finds the texts of special tokens.
        added: finds the texts of all tokens that were added to the vocabulary, special or not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokeniser: Tokeniser) -> None:
        self._tokenizer = tokenizer
        self.control = tokeniser.control
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self.added = any_of(content for content in added if content.strip())

    def render(self, messages: Sequence[Message], generation_prompt: bool, tools: list[dict[str, Any]] | None = None) -> str:
        """The rendered text of a conversation.

        Raises:
            RowError: the template rejects the conversation.
            ModelError: there is no template, or it is not valid Jinja.
        """
        plain = all(len(message) == 2 for message in messages)
        return self._render(messages if plain else [*map(self._readable, messages)], generation_prompt, tools)

    def whole(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """The text of a conversation with the end of its last turn; raises as `render`."""
        text, last = self.render(messages, False, tools), messages[-1]
        if last["role"] != "assistant":
            return text
        return text + (self.ends.closing_of_calls if "tool_calls" in last else self.ends.closing)

    def around(self, roles: Sequence[str], generation_prompt: bool) -> tuple[list[str], list[int]]:
        """The texts around placeholders for messages of these roles, and the placeholders' numbers; raises as `render`."""
        messages = [{"role": role, "content": PLACEHOLDER.format(number)} for number, role in enumerate(roles)]
        parts = PLACEHOLDERS.split(self.render(messages, True) if generation_prompt else self.whole(messages))
        return parts[::2], [int(number) for number in parts[1::2]]

    def ending_in(self, tail: str, start: int = 0) -> Ending | None:
        """The end of turn in the text after an answer: the last added token before the template's footer.

        Args:
            start: where to begin in `tail`.
        """
        tokens = self.added.finditer(tail.removesuffix(self.ends.footer), start)
        found = [match for match in tokens if match.group() != self._opening or self.ends.closing]
        return self.ending(found[-1].group(), found[-1].end()) if found else None

    def ending(self, token: str, stop: int) -> Ending:
        return Ending(token, stop, self.control.fullmatch(token) is not None)

    def end_of_common_tokens(self, first: str, second: str) -> int:
        """Up to where two texts are the same, without a part of an added token."""
        place = len(common_prefix(first, second))
        cut = [
            match.start()
            for text in (first, second)
            for match in self.added.finditer(text)
            if match.start() < place < match.end()
        ]
        return min([place, *cut])

    @cached_property
    def _opening(self) -> str | None:
        """The added token that begins a turn, as it begins the first one; some templates write it after the last one, too."""
        try:
            before = self.around(("user",), False)[0][0]
        except RowError:
            return None
        bos = self._tokenizer.bos_token
        found = self.added.match(before.removeprefix(bos) if bos else before)
        return found.group() if found else None

    @cached_property
    def ends(self) -> TurnEnds:
        """How the template ends an answer, seen in a short conversation."""
        answer = {"role": "assistant", "content": PLACEHOLDER.format(1)}
        last = self._after_answer([QUESTION, answer])
        if last is None:
            return TurnEnds()
        continued = self._after_answer([QUESTION, answer, QUESTION]) or ""
        found = [match for match in self.added.finditer(last) if match.group() != self._opening]
        if not found:
            return TurnEnds(closing=self._first_added(continued), closing_of_calls=self._closing_of_calls())
        shared = len(common_prefix(last, continued))
        within = [match for match in found if match.end() <= shared] or found
        return TurnEnds(footer=last[within[-1].end() :])

    @cached_property
    def thinking_keys(self) -> list[str]:
        """The keys of an answer whose thinking the template renders."""
        answer = {"role": "assistant", "content": PLACEHOLDER.format(1)}
        return [key for key in THINKING_KEYS if self._shows_thinking({**answer, key: PLACEHOLDER.format(2)})]

    @cached_property
    def takes_thinking_in_content(self) -> bool:
        """Whether the template knows thinking between tags in an answer's content alone."""
        known = THINKING_END in str(self._tokenizer.chat_template)
        return (
            known and not self.thinking_keys and self._shows_thinking(in_content(PLACEHOLDER.format(2), PLACEHOLDER.format(1)))
        )

    def _readable(self, message: Message) -> Message:
        """A message with its thinking where the template reads it, if it does."""
        key = next((key for key in THINKING_KEYS if key in message), None)
        if key is None or key in self.thinking_keys:
            return dict(message)
        others = {name: value for name, value in message.items() if name != key}
        if self.thinking_keys:
            return {**others, self.thinking_keys[0]: message[key]}
        if self.takes_thinking_in_content and THINKING_END not in message["content"]:
            return {**others, **in_content(message[key], message["content"])}
        return dict(message)

    def _shows_thinking(self, answer: Message) -> bool:
        try:
            return PLACEHOLDER.format(2) in self._render([QUESTION, answer], False, None)
        except RowError:
            return False

    def _after_answer(self, messages: Sequence[Message]) -> str | None:
        """What follows the answer, up to the next message; None if the template rejects the conversation."""
        try:
            text = self._render(messages, False, None)
        except RowError:
            return None
        parts = text.split(PLACEHOLDER.format(1))
        return PLACEHOLDERS.split(parts[1])[0] if len(parts) == 2 else None

    def _closing_of_calls(self) -> str:
        try:
            called, continued = (self._render(turns, False, [TOOL]) for turns in ([QUESTION, CALL], [QUESTION, CALL, RESULT]))
        except RowError:
            return ""
        return self._first_added(continued[len(called) :]) if continued.startswith(called) else ""

    def _first_added(self, text: str) -> str:
        """The added token at the beginning of a text, with the spaces before it; empty if there is none, or it begins texts."""
        spaces = len(text) - len(text.lstrip())
        found = self.added.match(text, spaces)
        return text[: found.end()] if found and found.group() != self._tokenizer.bos_token else ""

    def _render(self, messages: Sequence[Message], generation_prompt: bool, tools: list[dict[str, Any]] | None) -> str:
        import jinja2

        if not self._tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template",
                "prepare with a model that has one, give one with --chat-template FILE.jinja, "
                "or use plain text turns with --chat-template plain",
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tools=tools, tokenize=False, add_generation_prompt=generation_prompt
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is not valid Jinja (line {error.lineno}): {error.message}",
                "prepare with another one: --chat-template FILE.jinja",
            ) from error
        except jinja2.TemplateError as error:
            raise RowError(f"the chat template rejects this conversation: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it may divide by zero, or use a value that the row lacks
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise RowError(f"the chat template rejects this conversation: {reason}") from error
        return valid_text(text, "the text that the chat template renders")


def in_content(thinking: str, content: str) -> Message:
    """An answer with its thinking between tags in its content."""
    return {"role": "assistant", "content": f"<think>\n{thinking}\n</think>\n\n{content}"}
