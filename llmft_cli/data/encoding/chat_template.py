"""Renders a conversation with a chat template and locates the assistant's turns in the text.

This works for any template: the conversation is rendered again with a placeholder for every
message, and the template's own text between the placeholders shows where each message is. If
a template depends on the contents or renders tool calls, the prompt of every answer is rendered instead.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.base.errors import ModelError, first_line
from llmft_cli.data.encoding.template_skeleton import (
    PLACEHOLDER,
    PLACEHOLDERS,
    THINKING_END,
    Ending,
    RenderedRow,
    TemplateSkeleton,
    end_of_turn_after,
    introductions_of,
    rendered_forms,
)
from llmft_cli.data.encoding.tokenising import Span, Tokeniser, any_of
from llmft_cli.data.forms.examples import THINKING_KEYS, Conversation, Message, RowError
from llmft_cli.data.forms.fields import valid_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Piece:
    """A part of the rendered text: a message by its number, or the template's own text (None)."""

    text: str
    message: int | None


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokeniser: Tokeniser) -> None:
        self._tokenizer = tokenizer
        self._control = tokeniser.control
        self._skeletons: dict[tuple[tuple[str, ...], bool], TemplateSkeleton] = {}
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._added = any_of(content for content in added if content.strip())

    def prompt(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> RenderedRow:
        """The conversation with the generation prompt.

        Raises:
            RowError: the template rejects the conversation or leaves out a message.
        """
        return self._render_row(Conversation(list(messages), tools), [], generation_prompt=True)

    def conversation(self, conversation: Conversation, learned: Collection[int] | None) -> RenderedRow:
        """A whole conversation; the learned answers and their ends of turn are supervised.

        Args:
            learned: numbers of the supervised messages, from 0; None for the whole text.

        Raises:
            RowError: the template rejects the conversation or leaves out a message, an answer cannot be
                found in the rendered text, or it has no end of turn.
        """
        return self._render_row(conversation, learned, generation_prompt=False)

    def render(self, messages: Sequence[Message], generation_prompt: bool, tools: list[dict[str, Any]] | None = None) -> str:
        """The rendered text of a conversation.

        Raises:
            RowError: the template rejects the conversation.
            ModelError: there is no template, or it is not valid Jinja.
        """
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

    def _render_row(self, conversation: Conversation, learned: Collection[int] | None, generation_prompt: bool) -> RenderedRow:
        messages, tools = conversation.messages, conversation.tools
        text = self.render(messages, generation_prompt, tools)
        if tools or any("tool_calls" in message for message in messages):
            self._refuse_hidden_tools(conversation, text, generation_prompt)
            return self._join_pieces(self._pieces_by_turn(conversation, text), conversation, learned)
        if any(key in message for message in messages for key in THINKING_KEYS):
            refuse_hidden_thinking(messages, text)
            return self._join_pieces(self._pieces_with_thinking(conversation, text), conversation, learned)
        skeleton = self._skeleton(tuple(message["role"] for message in messages), generation_prompt)
        missing = set(range(len(messages))).difference(skeleton.order)
        if missing:
            number = min(missing)
            raise RowError(f"the chat template leaves out message {number + 1} ({messages[number]['role']})")
        found = skeleton.locate(conversation, text, learned)
        return found or self._join_pieces(self._pieces_by_prefix(messages, text, skeleton), conversation, learned)

    def _skeleton(self, roles: tuple[str, ...], generation_prompt: bool) -> TemplateSkeleton:
        """The template's own text around messages of these roles, in rendered order."""
        key = (roles, generation_prompt)
        if key not in self._skeletons:
            texts, order = self._around(roles, generation_prompt)
            controls = [[match.span() for match in self._control.finditer(text)] for text in texts]
            leads = [
                self._lead(roles[:number], before) if roles[number] == "assistant" else 0
                for number, before in zip(order, texts, strict=False)
            ]
            endings = [self._ending(text) for text in texts]
            introductions = introductions_of([roles[number] for number in order], texts, endings)
            self._skeletons[key] = TemplateSkeleton(texts, order, controls, endings, leads, introductions)
        return self._skeletons[key]

    def _around(self, roles: tuple[str, ...], generation_prompt: bool) -> tuple[list[str], list[int]]:
        """The texts around placeholders for messages of these roles, and the placeholders' numbers."""
        messages = [{"role": role, "content": PLACEHOLDER.format(number)} for number, role in enumerate(roles)]
        parts = PLACEHOLDERS.split(self.render(messages, generation_prompt))
        return parts[::2], [int(number) for number in parts[1::2]]

    def _lead(self, roles: tuple[str, ...], before: str) -> int:
        prompt_end = self._around(roles, True)[0][-1]
        return len(before) - len(prompt_end) if before.startswith(prompt_end) else 0

    def _ending(self, after: str) -> Ending | None:
        """The end of turn at the beginning of the template's text after an answer."""
        spaces = len(after) - len(after.lstrip())
        found = self._added.match(after, spaces)
        return found and Ending(found.group(), found.end(), self._control.fullmatch(found.group()) is not None)

    def _pieces_by_prefix(self, messages: Sequence[Message], text: str, skeleton: TemplateSkeleton) -> list[Piece]:
        """Locates each answer by rendering its prompt; for templates that depend on the contents."""
        self._refuse_spelled_tokens([message["content"] for message in messages])
        pieces: list[Piece] = []
        position = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], True)
            last = number == len(messages) - 1
            answer = answer_after(before, text, message["content"], skeleton.texts[-1] if last else None)
            if answer is None or len(before) < position:
                raise RowError(f"message {number + 1} cannot be found in the text rendered by the chat template")
            pieces += [Piece(text[position : len(before)], None), Piece(answer, number)]
            position = len(before) + len(answer)
        return [*pieces, Piece(text[position:], None)]

    def _pieces_with_thinking(self, conversation: Conversation, text: str) -> list[Piece]:
        """Handles both templates that keep the thinking of every turn and those that keep only the last."""
        messages = conversation.messages
        self._refuse_spelled_tokens(messages)
        with suppress(RowError):
            return self._pieces_by_turn(conversation, text)
        return self._pieces_by_prefix(messages, text, self._skeleton(tuple(message["role"] for message in messages), False))

    def _refuse_spelled_tokens(self, content: Any) -> None:
        """Reject special tokens in messages: without known positions they cannot be told from the template's own."""
        if self._control.search(json.dumps(content, ensure_ascii=False)):
            raise RowError("a message contains the text of a special token, and with this template messages cannot be located")

    def _refuse_hidden_tools(self, conversation: Conversation, text: str, generation_prompt: bool) -> None:
        """Reject a row whose tools the template silently ignores: most templates do not support tools."""
        messages, tools = conversation.messages, conversation.tools

        def unseen(others: Sequence[Message], tools: list[dict[str, Any]] | None) -> bool:
            try:
                return self.render(others, generation_prompt, tools) == text
            except RowError:  # the template rejects the change, so it does read this part
                return False

        if tools and unseen(messages, None):
            raise RowError("the chat template ignores the tools")
        for number, message in enumerate(messages):
            other = with_other_tools(message)
            if other != message and unseen([*messages[:number], other, *messages[number + 1 :]], tools):
                what = "the tool result" if message["role"] == "tool" else "the tool calls"
                raise RowError(f"the chat template leaves out {what} in message {number + 1}")

    def _pieces_by_turn(self, conversation: Conversation, text: str) -> list[Piece]:
        """The assistant's turns with everything that the template adds, such as tool calls."""
        messages, tools = conversation.messages, conversation.tools
        self._refuse_spelled_tokens([messages, tools])
        pieces: list[Piece] = []
        position = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], True, tools)
            turn = common_prefix(self.render(messages[: number + 1], False, tools), text)[len(before) :]
            endings = list(self._added.finditer(turn))
            if not text.startswith(before) or len(before) < position or not turn.strip():
                raise RowError(f"message {number + 1} cannot be found in the text rendered by the chat template")
            if not endings:
                raise RowError(f"the chat template adds no end of turn after message {number + 1}")
            answer = turn[: endings[-1].start()]
            pieces += [Piece(text[position : len(before)], None), Piece(answer, number)]
            position = len(before) + len(answer)
        return [*pieces, Piece(text[position:], None)]

    def _join_pieces(self, pieces: Sequence[Piece], conversation: Conversation, learned: Collection[int] | None) -> RenderedRow:
        """Join pieces whose messages contain no special tokens: all of them are the template's."""
        text = "".join(piece.text for piece in pieces)
        spans: list[Span] = []
        position = prompt_length = 0
        for piece, after in zip(pieces, [*pieces[1:], Piece("", None)], strict=True):
            end = position + len(piece.text)
            if piece.message is not None and piece.message == conversation.first_answer:
                prompt_length = position
            if piece.message is not None and learned is not None and piece.message in learned:
                ending = end_of_turn_after(self._ending(after.text), piece.message, conversation.messages)
                spans.append((position, end + ending.stop))
            position = end
        special_spans = [match.span() for match in self._control.finditer(text)]
        return RenderedRow(text, special_spans, None if learned is None else spans, prompt_length=prompt_length)


def with_other_tools(message: Message) -> Message:
    """A message with placeholders for tool results and for the names of called tools."""
    if message["role"] == "tool":
        return {**message, "content": PLACEHOLDER.format(0)}
    if "tool_calls" not in message:
        return message
    name = {"name": PLACEHOLDER.format(0)}
    return {**message, "tool_calls": [{**call, "function": call["function"] | name} for call in message["tool_calls"]]}


def refuse_hidden_thinking(messages: Sequence[Message], text: str) -> None:
    """Reject a row whose last answer loses its thinking: templates of non-thinking models drop it silently.

    Raises:
        RowError: the last answer's thinking is not in the rendered text.
    """
    last = messages[-1]
    for key in THINKING_KEYS:
        if key in last and last[key].strip() not in text:
            raise RowError(f"the chat template leaves out the {key} of message {len(messages)}")


def common_prefix(first: str, second: str) -> str:
    """The longest common prefix of two texts."""
    if second.startswith(first):
        return first
    differing = (index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return first[: next(differing, min(len(first), len(second)))]


def answer_after(prompt: str, text: str, content: str, ending: str | None) -> str | None:
    """The rendered answer after the prompt, or None if it is not there.

    Args:
        ending: the template's text after the answer, if it is the last message.
    """
    if not text.startswith(prompt):
        return None
    written = text[len(prompt) :]
    space = len(written) - len(written.lstrip())
    for form in rendered_forms(content):
        for start in dict.fromkeys((0, space)):
            if form and written.startswith(form, start):
                return written[: start + len(form)]
    answer = content.split(THINKING_END)[-1].strip()
    if ending and written.endswith(ending) and answer in written:
        # The template has reformatted the thinking.
        return written.removesuffix(ending)
    return None
