"""From a conversation to token ids and loss mask: the one place where token ids are made.

prepare, eval, chat and merge's check all take their ids from here, so that a model is asked in
exactly the tokens it was trained on. The chat template's text is all there is: nothing is
prepended, and text inside a message never becomes a special token.

Which tokens are the assistant's is found in the rendered text, so it works for any template:
the conversation is rendered once more with a placeholder for every message, and the text
between the placeholders, which is the template's own, tells where each message lies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmft_cli.data.formats import Message, RowError
from llmft_cli.data.tokenising import Tokeniser, any_of
from llmft_cli.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
# Characters for private use: no template produces or looks for them.
PLACEHOLDER = "\ue0f0{}\ue0f1"
PLACEHOLDERS = re.compile("\ue0f0(\\d+)\ue0f1")
THINKING_END = "</think>"

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids, and as labels the supervised ones; the others are -100 (what torch's loss ignores)."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text: the message of that number, or the template's own text (None).

    `lead` counts the template's characters before an answer that a prompt does not hold, so that
    the model has to write them: the space after Llama-2's `[/INST]`, Qwen3's empty thinking.
    """

    text: str
    message: int | None
    lead: int = 0


@dataclass(frozen=True)
class Skeleton:
    """A template's own text around messages: `texts[i]` stands before message `order[i]`, the last one at the end."""

    texts: list[str]
    order: list[int]


class ConversationEncoder:
    """Token ids of conversations and documents for one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._tokeniser = Tokeniser(tokenizer)
        self._skeletons: dict[tuple[tuple[str, ...], bool], Skeleton] = {}
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._ending = any_of(content for content in added if content.strip())

    def conversation(self, messages: Sequence[Message]) -> Encoded:
        """Ids of a whole conversation; supervised are the assistant's texts and the end of turn after each.

        Raises:
            RowError: the template refuses the conversation or leaves a message out, an answer cannot be
                found in the rendered text, or the template writes no end of turn after it.
        """
        pieces = self._pieces(messages, generation_prompt=False)
        spans = self._supervised_spans(pieces, messages)
        input_ids, offsets = self._tokenise(pieces)
        labels = self._labels(input_ids, offsets, spans)
        if all(label == IGNORED for label in labels):
            raise RowError("no token is supervised")
        return Encoded(input_ids, labels)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant is to answer.

        Raises:
            RowError: the template refuses the conversation or leaves a message out.
        """
        return self._tokenise(self._pieces(messages, generation_prompt=True))[0]

    def document(self, text: str) -> list[int]:
        """Ids of a raw text between the tokenizer's beginning and end of text, where it has them."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [item for item in (first, *ids, last) if item is not None]

    def end_of_turn(self) -> int | None:
        """The token that ends the assistant's turn in this template, or None where there is none."""
        if not self.tokenizer.chat_template:
            return None
        try:
            sample = self.conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        except RowError:
            return None
        return next(label for label in reversed(sample.labels) if label != IGNORED)

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The template's text for a conversation.

        Raises:
            RowError: the template refuses the conversation.
            ModelError: there is no template, or it is not valid Jinja.
        """
        import jinja2

        if not self.tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template", "give one with --chat-template FILE.jinja, or choose a chat model"
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is not valid Jinja (line {error.lineno}): {error.message}",
                "give another with --chat-template FILE.jinja",
            ) from error
        except jinja2.TemplateError as error:
            raise RowError(f"the chat template refuses it: {error}") from error
        return text

    def _pieces(self, messages: Sequence[Message], generation_prompt: bool) -> list[Piece]:
        text = self.render(messages, generation_prompt)
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
            forms = rendered_forms(messages[number]["content"])
            form = next((form for form in forms if text.startswith(form + after, position)), None)
            if form is None:
                return None
            lead = self._lead(roles[:number], before) if roles[number] == "assistant" else 0
            pieces += [Piece(form, number, lead), Piece(after, None)]
            position += len(form) + len(after)
        return pieces if position == len(text) else None

    def _lead(self, roles: tuple[str, ...], before: str) -> int:
        """How many of the characters before an answer are not in the prompt for it."""
        prompt_end = self._skeleton(roles, True).texts[-1]
        return len(before) - len(prompt_end) if before.startswith(prompt_end) else 0

    def _pieces_by_prefix(self, messages: Sequence[Message], text: str, skeleton: Skeleton) -> list[Piece]:
        """The assistant's texts found by rendering the prompt for each; for templates that depend on the contents."""
        if any(self._tokeniser.control.search(message["content"]) for message in messages):
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

    def _supervised_spans(self, pieces: Sequence[Piece], messages: Sequence[Message]) -> list[Span]:
        """Character spans of the assistant's texts, each up to the end of turn that the template writes after it."""
        spans = []
        position = 0
        for piece, after in zip(pieces, [*pieces[1:], Piece("", None)], strict=True):
            end = position + len(piece.text)
            if piece.message is not None and messages[piece.message]["role"] == "assistant":
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
        if not self._tokeniser.control.fullmatch(ending) and any(ending in message["content"] for message in messages):
            raise RowError(f"a message spells {ending}, which ends a turn here and is not marked special in the tokenizer")

    def _tokenise(self, pieces: Sequence[Piece]) -> tuple[list[int], list[Span]]:
        """Ids and character offsets of the whole text, in which only the template's own text has special tokens."""
        owned: list[Span] = []
        position = 0
        for piece in pieces:
            if piece.message is None:
                matches = self._tokeniser.control.finditer(piece.text)
                owned += [(position + match.start(), position + match.end()) for match in matches]
            position += len(piece.text)
        return self._tokeniser.encode("".join(piece.text for piece in pieces), owned)

    def _labels(self, input_ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
        """The ids of tokens that reach into a span, -100 for the others.

        A token that straddles a span's beginning (a space of the template with the first word) is
        supervised: the model will have to produce it. Not so a special token, which reaches in
        only where it swallows the spaces after it.
        """
        labels = []
        remaining = iter(spans)
        start, stop = next(remaining)
        for token, (first, last) in zip(input_ids, offsets, strict=True):
            while first >= stop and stop >= 0:
                start, stop = next(remaining, (-1, -1))
            reaches = last > start and first < stop
            straddles = first < start and token in self._tokeniser.control_ids
            labels.append(token if reaches and not straddles else IGNORED)
        return labels


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
