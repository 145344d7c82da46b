"""What a chat template makes of a conversation: the text, and where in it the assistant's turns lie.

They are found in the rendered text, so it works for any template: the conversation is rendered
once more with a placeholder for every message, and the text between the placeholders, which is
the template's own, tells where each message lies. A template that looks at the contents, or
writes tool calls, is asked for the prompt of every answer instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmft_cli.data.formats import Conversation, Message, RowError
from llmft_cli.data.tokenising import Span, Tokeniser, any_of
from llmft_cli.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters for private use: no template produces or looks for them.
PLACEHOLDER = "\ue0f0{}\ue0f1"
PLACEHOLDERS = re.compile("\ue0f0(\\d+)\ue0f1")
THINKING_END = "</think>"


@dataclass(frozen=True)
class Layout:
    """A text to tokenise: where its special tokens stand, and the character spans that are learned (None: all of it)."""

    text: str
    owned: list[Span]
    spans: list[Span] | None


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text: the message of that number, or the template's own text (None).

    `lead` counts the template's characters before an answer that a prompt does not hold, so that
    the model has to write them: the space after Llama-2's `[/INST]`, Qwen3's empty thinking.
    `own` says that the special tokens in it are the template's (around a tool call).
    """

    text: str
    message: int | None
    lead: int = 0
    own: bool = False


@dataclass(frozen=True)
class Skeleton:
    """A template's own text around messages: `texts[i]` stands before message `order[i]`, the last one at the end."""

    texts: list[str]
    order: list[int]


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokeniser: Tokeniser) -> None:
        self._tokenizer = tokenizer
        self._control = tokeniser.control
        self._skeletons: dict[tuple[tuple[str, ...], bool], Skeleton] = {}
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._ending = any_of(content for content in added if content.strip())

    def prompt(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None) -> Layout:
        """The text up to where the assistant is to answer.

        Raises:
            RowError: the template refuses the conversation or leaves a message out.
        """
        pieces = self._pieces(Conversation(list(messages), tools), generation_prompt=True)
        return Layout("".join(piece.text for piece in pieces), self._owned(pieces), [])

    def conversation(self, conversation: Conversation, learned: Collection[int] | None) -> Layout:
        """The text of a whole conversation; learned are some answers and the end of turn after each.

        Args:
            learned: numbers of the messages that are learned, from 0, or None for the whole text.

        Raises:
            RowError: the template refuses the conversation or leaves a message out, an answer cannot be
                found in the rendered text, or the template writes no end of turn after it.
        """
        pieces = self._pieces(conversation, generation_prompt=False)
        spans = None if learned is None else self._spans(pieces, conversation.messages, learned)
        return Layout("".join(piece.text for piece in pieces), self._owned(pieces), spans)

    def render(self, messages: Sequence[Message], generation_prompt: bool, tools: list[dict[str, Any]] | None = None) -> str:
        """The template's text for a conversation.

        Raises:
            RowError: the template refuses the conversation.
            ModelError: there is no template, or it is not valid Jinja.
        """
        import jinja2

        if not self._tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template",
                "choose a chat model, give its template with --chat-template FILE.jinja, "
                "or use plain text turns with --chat-template plain",
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tools=tools, tokenize=False, add_generation_prompt=generation_prompt
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is not valid Jinja (line {error.lineno}): {error.message}",
                "give another with --chat-template FILE.jinja",
            ) from error
        except (jinja2.TemplateError, TypeError) as error:  # TypeError: the template computes with what the row has not
            raise RowError(f"the chat template refuses it: {error}") from error
        return text

    def _pieces(self, conversation: Conversation, generation_prompt: bool) -> list[Piece]:
        messages, tools = conversation.messages, conversation.tools
        text = self.render(messages, generation_prompt, tools)
        if tools or any(message.get("tool_calls") for message in messages):
            self._refuse_hidden_tools(conversation, text)
            return self._pieces_by_turn(conversation, text)
        skeleton = self._skeleton(tuple(message["role"] for message in messages), generation_prompt)
        missing = set(range(len(messages))).difference(skeleton.order)
        if missing:
            number = min(missing)
            raise RowError(f"the chat template leaves out message {number + 1} ({messages[number]['role']})")
        return self._pieces_by_skeleton(messages, text, skeleton) or self._pieces_by_prefix(messages, text, skeleton)

    def _skeleton(self, roles: tuple[str, ...], generation_prompt: bool) -> Skeleton:
        """The template's own text around messages of these roles, in the order in which it writes them."""
        key = (roles, generation_prompt)
        if key not in self._skeletons:
            messages = [{"role": role, "content": PLACEHOLDER.format(number)} for number, role in enumerate(roles)]
            parts = PLACEHOLDERS.split(self.render(messages, generation_prompt))
            self._skeletons[key] = Skeleton(parts[::2], [int(number) for number in parts[1::2]])
        return self._skeletons[key]

    def _pieces_by_skeleton(self, messages: Sequence[Message], text: str, skeleton: Skeleton) -> list[Piece] | None:
        """The rendered text cut at its messages, or None where it does not follow the placeholder rendering."""
        if not text.startswith(skeleton.texts[0]):
            return None
        roles = tuple(message["role"] for message in messages)
        pieces = [Piece(skeleton.texts[0], None)]
        position = len(skeleton.texts[0])
        for number, before, after in zip(skeleton.order, skeleton.texts, skeleton.texts[1:], strict=False):
            content = messages[number]["content"]
            if not text.startswith(content + after, position):
                forms = rendered_forms(content)
                content = next((form for form in forms if text.startswith(form + after, position)), None)
            if content is None:
                return None
            lead = self._lead(roles[:number], before) if roles[number] == "assistant" else 0
            pieces += [Piece(content, number, lead), Piece(after, None)]
            position += len(content) + len(after)
        return pieces if position == len(text) else None

    def _lead(self, roles: tuple[str, ...], before: str) -> int:
        """How many of the characters before an answer are not in the prompt for it."""
        prompt_end = self._skeleton(roles, True).texts[-1]
        return len(before) - len(prompt_end) if before.startswith(prompt_end) else 0

    def _pieces_by_prefix(self, messages: Sequence[Message], text: str, skeleton: Skeleton) -> list[Piece]:
        """The assistant's texts found by rendering the prompt for each; for templates that depend on the contents."""
        if any(self._control.search(message["content"]) for message in messages):
            raise RowError("a message spells a special token, and the chat template does not show where messages lie")
        pieces: list[Piece] = []
        position = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], True)
            last = number == len(messages) - 1
            answer = answer_after(before, text, message["content"], skeleton.texts[-1] if last else None)
            if answer is None or len(before) < position:
                raise RowError(f"message {number + 1} cannot be found in the text that the chat template renders")
            pieces += [Piece(text[position : len(before)], None), Piece(answer, number)]
            position = len(before) + len(answer)
        return [*pieces, Piece(text[position:], None)]

    def _refuse_hidden_tools(self, conversation: Conversation, text: str) -> None:
        """Most templates know nothing of tools, and leave them out without a word."""
        for tool in conversation.tools or []:
            name = tool.get("function", tool).get("name")
            if isinstance(name, str) and name not in text:
                raise RowError(f"the chat template does not show the tool {name}")
        for number, message in enumerate(conversation.messages, 1):
            calls = [call["function"]["name"] for call in message.get("tool_calls") or []]
            for name in calls:
                if name not in text:
                    raise RowError(f"the chat template leaves out the call of {name} in message {number}")
            content = message["content"].strip()
            if message["role"] != "assistant" and content not in text and json.dumps(content, ensure_ascii=False) not in text:
                raise RowError(f"the chat template leaves out message {number} ({message['role']})")

    def _pieces_by_turn(self, conversation: Conversation, text: str) -> list[Piece]:
        """The assistant's turns with all that the template writes in them, tool calls above all."""
        messages, tools = conversation.messages, conversation.tools
        if self._control.search(json.dumps([messages, tools], ensure_ascii=False)):
            raise RowError("a message spells a special token, and the chat template does not show where messages lie")
        pieces: list[Piece] = []
        position = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], True, tools)
            turn = common_prefix(self.render(messages[: number + 1], False, tools), text)[len(before) :]
            endings = list(self._ending.finditer(turn))
            if not text.startswith(before) or len(before) < position or not turn.strip():
                raise RowError(f"message {number + 1} cannot be found in the text that the chat template renders")
            if not endings:
                raise RowError(f"the chat template writes no end of turn after message {number + 1}")
            answer = turn[: endings[-1].start()]
            pieces += [Piece(text[position : len(before)], None), Piece(answer, number, own=True)]
            position = len(before) + len(answer)
        return [*pieces, Piece(text[position:], None)]

    def _spans(self, pieces: Sequence[Piece], messages: Sequence[Message], learned: Collection[int]) -> list[Span]:
        """Character spans of the learned messages, each up to the end of turn that the template writes after it."""
        spans = []
        position = 0
        for piece, after in zip(pieces, [*pieces[1:], Piece("", None)], strict=True):
            end = position + len(piece.text)
            if piece.message is not None and piece.message in learned:
                spaces = len(after.text) - len(after.text.lstrip())
                ending = self._ending.match(after.text, spaces)
                if ending is None:
                    raise RowError(f"the chat template writes no end of turn after message {piece.message + 1}")
                self._refuse_spelled_ending(ending.group(), messages)
                spans.append((position - piece.lead, end + ending.end()))
            position = end
        return spans

    def _refuse_spelled_ending(self, ending: str, messages: Sequence[Message]) -> None:
        """A token that is not marked special cannot be kept out of a message's ids."""
        if not self._control.fullmatch(ending) and any(ending in message["content"] for message in messages):
            raise RowError(f"a message spells {ending}, which ends a turn here and is not marked special in the tokenizer")

    def _owned(self, pieces: Sequence[Piece]) -> list[Span]:
        """Where the template itself writes special tokens."""
        owned: list[Span] = []
        position = 0
        for piece in pieces:
            if piece.message is None or piece.own:
                owned += [(position + match.start(), position + match.end()) for match in self._control.finditer(piece.text)]
            position += len(piece.text)
        return owned


def common_prefix(first: str, second: str) -> str:
    """What two texts begin with alike."""
    if second.startswith(first):
        return first
    differing = (index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return first[: next(differing, min(len(first), len(second)))]


def answer_after(prompt: str, text: str, content: str, ending: str | None) -> str | None:
    """What the template made of an answer, from the prompt's end on, or None where it is not there.

    Args:
        ending: the template's text after the answer, where it is the last message.
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
        # Thinking that the template laid out anew.
        return written.removesuffix(ending)
    return None


def rendered_forms(content: str) -> list[str]:
    """What templates make of a message's text: as it is, trimmed, or without the thinking before the answer."""
    answer = content.split(THINKING_END)[-1]
    return list(
        dict.fromkeys(
            [content, content.strip(), content.rstrip(), content.lstrip(), answer, answer.strip(), answer.lstrip("\n")]
        )
    )
