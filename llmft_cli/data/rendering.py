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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmft_cli.data.formats import Message, RowError
from llmft_cli.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
# Characters for private use: no template produces or looks for them.
PLACEHOLDER = "\ue0f0{}\ue0f1"
THINKING_END = "</think>"


@dataclass(frozen=True)
class Encoded:
    """Token ids, and as labels the supervised ones; the others are -100 (what torch's loss ignores)."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text: the message of that number, or the template's own text (None)."""

    text: str
    message: int | None


class ConversationEncoder:
    """Token ids of conversations and documents for one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._skeletons: dict[tuple[tuple[str, ...], bool], list[str] | None] = {}
        added = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, added)) or r"(?!)")

    def conversation(self, messages: Sequence[Message]) -> Encoded:
        """Ids of a whole conversation; supervised are the assistant's texts and the end of turn after each.

        Raises:
            RowError: the template refuses the conversation, an answer cannot be found in the
                rendered text, or the template writes no end of turn after it.
        """
        pieces = self._pieces(messages, generation_prompt=False)
        spans = self._supervised_spans(pieces, messages)
        input_ids, offsets = self._tokenise(pieces)
        labels = [token if overlaps(offset, spans) else IGNORED for token, offset in zip(input_ids, offsets, strict=True)]
        if labels[-1] == IGNORED and all(label == IGNORED for label in labels):
            raise RowError("no token is supervised")
        return Encoded(input_ids, labels)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant is to answer.

        Raises:
            RowError: the template refuses the conversation.
        """
        return self._tokenise(self._pieces(messages, generation_prompt=True))[0]

    def document(self, text: str) -> list[int]:
        """Ids of a raw text between the tokenizer's beginning and end of text, where it has them."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [item for item in (first, *ids, last) if item is not None]

    def end_of_turn(self) -> int | None:
        """The token that ends the assistant's turn in this template, or None without a template."""
        if not self.tokenizer.chat_template:
            return None
        sample = self.conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        return next(label for label in reversed(sample.labels) if label != IGNORED)

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The template's text for a conversation."""
        import jinja2

        if not self.tokenizer.chat_template:
            raise ModelError(
                "the model's tokenizer has no chat template", "give one with --chat-template FILE.jinja, or choose a chat model"
            )
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
            )
        except jinja2.TemplateError as error:
            raise RowError(f"the chat template refuses it: {error}") from error
        return text

    def _pieces(self, messages: Sequence[Message], generation_prompt: bool) -> list[Piece]:
        text = self.render(messages, generation_prompt)
        pieces = self._pieces_by_skeleton(messages, text, generation_prompt)
        if pieces is None:
            pieces = self._pieces_by_prefix(messages, text)
        return pieces

    def _pieces_by_skeleton(self, messages: Sequence[Message], text: str, generation_prompt: bool) -> list[Piece] | None:
        """The rendered text cut at its messages, or None where it does not follow the placeholder rendering."""
        between = self._skeleton(tuple(message["role"] for message in messages), generation_prompt)
        if between is None or not text.startswith(between[0]):
            return None
        pieces = [Piece(between[0], None)]
        position = len(between[0])
        for number, (message, after) in enumerate(zip(messages, between[1:], strict=True)):
            last = number == len(messages) - 1
            for form in rendered_forms(message["content"]):
                end = position + len(form)
                if text.startswith(form + after, position) and (not last or end + len(after) == len(text)):
                    break
            else:
                return None
            pieces += [Piece(text[position:end], number), Piece(after, None)]
            position = end + len(after)
        return pieces

    def _skeleton(self, roles: tuple[str, ...], generation_prompt: bool) -> list[str] | None:
        """The template's own text before, between and after messages of these roles; None if it drops or repeats one."""
        key = (roles, generation_prompt)
        if key not in self._skeletons:
            placeholders = [PLACEHOLDER.format(number) for number in range(len(roles))]
            messages = [{"role": role, "content": text} for role, text in zip(roles, placeholders, strict=True)]
            text = self.render(messages, generation_prompt)
            between: list[str] | None = []
            for placeholder in placeholders:
                before, found, text = text.partition(placeholder)
                if not found or placeholder in text:
                    between = None
                    break
                between.append(before)  # type: ignore[union-attr]
            self._skeletons[key] = None if between is None else [*between, text]
        return self._skeletons[key]

    def _pieces_by_prefix(self, messages: Sequence[Message], text: str) -> list[Piece]:
        """The assistant's texts found by rendering what comes before each; for templates that depend on the contents."""
        if any(self._special.search(message["content"]) for message in messages):
            raise RowError("a message spells a special token, and the chat template does not show where messages lie")
        pieces: list[Piece] = []
        position = 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], True)
            start = len(before)
            form = next((form for form in rendered_forms(message["content"]) if text.startswith(before + form)), None)
            if form is None or start < position:
                raise RowError(f"message {number + 1} cannot be found in the text that the chat template renders")
            pieces += [Piece(text[position:start], None), Piece(form, number)]
            position = start + len(form)
        return [*pieces, Piece(text[position:], None)]

    def _supervised_spans(self, pieces: Sequence[Piece], messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Character spans of the assistant's texts, each up to the end of turn that the template writes after it."""
        spans = []
        position = 0
        for piece, after in zip(pieces, [*pieces[1:], Piece("", None)], strict=True):
            end = position + len(piece.text)
            if piece.message is not None and messages[piece.message]["role"] == "assistant":
                ending = self._special.match(after.text.lstrip())
                if ending is None:
                    raise RowError(f"the chat template writes no end of turn after message {piece.message + 1}")
                spaces = len(after.text) - len(after.text.lstrip())
                spans.append((position, end + spaces + ending.end()))
            position = end
        return spans

    def _tokenise(self, pieces: Sequence[Piece]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of the whole text; message text that spells a special token is split up."""
        if not any(piece.message is not None and self._special.search(piece.text) for piece in pieces):
            return self._tokenise_text("".join(piece.text for piece in pieces), split_special=False)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for piece in pieces:
            piece_ids, piece_offsets = self._tokenise_text(piece.text, split_special=piece.message is not None)
            ids += piece_ids
            offsets += [(start + position, end + position) for start, end in piece_offsets]
            position += len(piece.text)
        return ids, offsets

    def _tokenise_text(self, text: str, split_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=split_special
        )
        return encoding["input_ids"], encoding["offset_mapping"]


def rendered_forms(content: str) -> list[str]:
    """What templates make of a message's text: as it is, trimmed, or without the thinking before the answer."""
    answer = content.split(THINKING_END)[-1]
    return list(
        dict.fromkeys(
            [content, content.strip(), content.rstrip(), content.lstrip(), answer, answer.strip(), answer.lstrip("\n")]
        )
    )


def overlaps(offset: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bool:
    """Whether a token's characters reach into one of the spans.

    A token that straddles a span's beginning (a space of the template with the first word) is
    supervised: the model will have to produce it.
    """
    return any(offset[0] < end and offset[1] > start for start, end in spans)
