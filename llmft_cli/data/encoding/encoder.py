"""From a conversation to token ids and loss mask: the one place where token ids are made.

prepare, eval, chat and merge's check all take their ids from here, so that a model is asked in
exactly the tokens it was trained on. The chat template's text is all there is: nothing is
prepended, and text inside a message never becomes a special token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.data.encoding.chat_template import ChatTemplate
from llmft_cli.data.encoding.template_skeleton import Layout
from llmft_cli.data.encoding.tokenising import EncodedTokens, Span, Tokeniser, Tokens
from llmft_cli.data.forms.examples import IGNORED, Conversation, Document, Message, RowError, Tokenised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """Token ids, and the stretches of them that are supervised, as (first, one after the last) in order."""

    input_ids: list[int]
    supervised: list[Span]

    @property
    def labels(self) -> list[int]:
        """The supervised ids; the others are -100 (what torch's loss ignores)."""
        labels = [IGNORED] * len(self.input_ids)
        for first, stop in self.supervised:
            labels[first:stop] = self.input_ids[first:stop]
        return labels


class ConversationEncoder:
    """Token ids of conversations and documents for one tokenizer and its chat template.

    A row is laid out, tokenised and masked, one after another or, where there are many, in batches:
    `lay_out`, `tokenise` and `mask`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: str = "assistant") -> None:
        """
        Args:
            train_on: `assistant` (all answers), `last` (the last one), or `all` (every token).
        """
        self.tokenizer = tokenizer
        self._train_on = train_on
        self._tokeniser = Tokeniser(tokenizer)
        self._template = ChatTemplate(tokenizer, self._tokeniser)

    def conversation(self, messages: Sequence[Message]) -> Encoded:
        """Ids of a whole conversation; supervised are the assistant's texts and the end of turn after each.

        Raises:
            RowError: the template refuses the conversation or leaves a message out, an answer cannot be
                found in the rendered text, or the template writes no end of turn after it.
        """
        layout = self.lay_out(Conversation(list(messages)))
        return self.mask(layout, self.tokenise([layout])[0])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant is to answer.

        Raises:
            RowError: the template refuses the conversation or leaves a message out.
        """
        return self.tokenise([self._template.prompt(messages)])[0].ids

    def document(self, text: str) -> list[int]:
        """Ids of a raw text between the tokenizer's beginning and end of text, where it has them."""
        return self.framed(self.tokenise([self.lay_out(Document(text))])[0].ids)

    def framed(self, ids: Sequence[int]) -> list[int]:
        """The ids of a raw text with the tokenizer's beginning and end of text."""
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [item for item in (first, *ids, last) if item is not None]

    def lay_out(self, example: Conversation | Document) -> Layout:
        """The text of a row.

        Raises:
            RowError: as `conversation`.
        """
        if isinstance(example, Document):
            return Layout(example.text, [], None)
        return self._template.conversation(example, self._learned(example))

    def tokenise(self, layouts: Sequence[Layout]) -> list[Tokens | EncodedTokens]:
        """The tokens of rows; the work is done in the library, on all cores and without Python's lock."""
        return self._tokeniser.encode([(layout.text, layout.owned, layout.head) for layout in layouts])

    def mask(self, layout: Layout, tokens: Tokens | EncodedTokens) -> Encoded:
        """The ids of a conversation, and which of them are supervised.

        A token that straddles a span's beginning (a space of the template with the first word) is
        supervised: the model will have to produce it. Not so a special token, which reaches in
        only where it swallows the spaces after it. Nothing predicts a row's first token.

        Raises:
            RowError: nothing is supervised.
        """
        ids = tokens.ids
        if layout.spans is None:
            return Encoded(ids, [(1, len(ids))])
        supervised = []
        for span in layout.spans:
            first, stop = tokens.reaching_into(span)
            if ids[first] in self._tokeniser.control_ids and tokens.start_of(first) < span[0]:
                first += 1
            if first < stop:
                supervised.append((first, stop))
        if not supervised:
            raise RowError("no token is supervised")
        return Encoded(ids, supervised)

    def given(self, row: Tokenised) -> Encoded:
        """A row that comes as token ids.

        Raises:
            RowError: the tokenizer has no such token.
        """
        if max(row.input_ids) >= len(self.tokenizer):
            raise RowError(f"input_ids holds {max(row.input_ids)}, and the tokenizer has {len(self.tokenizer)} tokens")
        return Encoded(row.input_ids, stretches([label != IGNORED for label in [IGNORED, *row.labels[1:]]]))

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The template's text for a conversation, as `ChatTemplate.render`."""
        return self._template.render(messages, generation_prompt)

    def end_of_turn(self) -> int | None:
        """The token that ends the assistant's turn in this template, or None where there is none."""
        if not self.tokenizer.chat_template:
            return None
        try:
            sample = self.conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        except RowError:
            return None
        return sample.input_ids[sample.supervised[-1][1] - 1]

    def _learned(self, conversation: Conversation) -> Collection[int] | None:
        """The numbers of the messages that are learned, or None for the whole text."""
        if self._train_on == "all":
            return None
        answers = [number for number, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if self._train_on == "last":
            answers = answers[-1:]
        if conversation.trained is not None:
            answers = [number for number in answers if conversation.trained[number]]
        return answers


def stretches(marks: Sequence[bool]) -> list[Span]:
    """Where runs of marks begin and end."""
    edges = [index for index, (mark, before) in enumerate(zip([*marks, False], [False, *marks], strict=True)) if mark != before]
    return list(zip(edges[::2], edges[1::2], strict=True))
