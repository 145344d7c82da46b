"""From a conversation to token ids and the loss mask.

prepare, eval, chat and merge's verification all use this module, so prompts have exactly the tokens
that the model was trained on. Nothing is added to the chat template's text, and text inside
a message never becomes a special token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.data.encoding.answer_rows import AUTO
from llmft_cli.data.encoding.chat_template import REJECT, ChatTemplate
from llmft_cli.data.encoding.model_ids import ModelIds
from llmft_cli.data.encoding.rendered import RenderedExample, RenderedRow
from llmft_cli.data.encoding.tokenising import EncodedTokens, Span, Tokeniser, Tokens
from llmft_cli.data.forms.examples import IGNORED, Conversation, Document, Message, RowError, Tokenised
from llmft_cli.models.limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORT_CONVERSATION: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class Encoded(NamedTuple):
    """Token ids, and their supervised spans as (start, stop), in order."""

    input_ids: list[int]
    supervised: list[Span]

    @property
    def labels(self) -> list[int]:
        """The ids, with -100 (ignored by torch's loss) where they are not supervised."""
        labels = [IGNORED] * len(self.input_ids)
        for first, stop in self.supervised:
            labels[first:stop] = self.input_ids[first:stop]
        return labels


class ConversationEncoder:
    """Token ids of conversations and documents for one tokenizer and its chat template.

    An example is rendered, tokenised and masked: `rows`, `tokenise` (in batches) and `mask`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train_on: str = "assistant",
        limits: Limits | None = None,
        *,
        rows_per_answer: str = AUTO,
        on_unrendered: str = REJECT,
    ) -> None:
        """
        Args:
            train_on: `assistant` (all answers), `last` (the last one), or `all` (every token).
            limits: of the model, whose embeddings every id must be in; None if that is known.
            rows_per_answer, on_unrendered: as of `ChatTemplate`.
        """
        self.tokenizer = tokenizer
        self._train_on = train_on
        self._model_ids = ModelIds(tokenizer, limits)
        self._tokeniser = Tokeniser(tokenizer)
        self._template = ChatTemplate(tokenizer, self._tokeniser, rows_per_answer, on_unrendered)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation with the generation prompt.

        Raises:
            RowError: the template rejects the conversation or leaves out a message, or the model has no embedding for a
                token.
            ModelError: the model has no embedding for a token of the template.
        """
        ids = self.tokenise([self._template.prompt(messages)])[0].ids
        self._check_conversation(ids)
        return ids

    def document(self, text: str) -> list[int]:
        """Ids of a raw text, with the tokenizer's bos and eos tokens if it has them."""
        return self.with_bos_and_eos(self.tokenise([document_row(text)])[0].ids)

    def with_bos_and_eos(self, ids: Sequence[int]) -> list[int]:
        """The ids between the tokenizer's bos and eos tokens, if it has them.

        Raises:
            RowError: the model has no embedding for a token of the text.
            ModelError: it has none for bos or eos.
        """
        first, last = ([] if item is None else [item] for item in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id))
        whole = [*first, *ids, *last]
        self._model_ids.check(whole, lambda: first + last, "the tokenizer")
        return whole

    def rows(self, example: Conversation | Document) -> RenderedExample:
        """The rendered rows of an example: the assistant's texts and the ends of turn after them are supervised.

        Raises:
            RowError: as `ChatTemplate.conversation`.
        """
        if isinstance(example, Document):
            return RenderedExample([document_row(example.text)], [])
        return self._template.conversation(example, self._learned(example))

    def tokenise(self, rows: Sequence[RenderedRow]) -> list[Tokens | EncodedTokens]:
        """The tokens of rows; the library uses all cores and releases the GIL."""
        return self._tokeniser.encode([(row.text, row.special_spans, row.prefix_length) for row in rows])

    def mask(self, rendered: RenderedRow, tokens: Tokens | EncodedTokens) -> Encoded:
        """The ids of a conversation, and which of them are supervised.

        A token that straddles the start of a span (a space of the template with the first word) is
        supervised, since the model has to produce it. A special token is not: it reaches into a span
        only if it absorbs the spaces after it. A row's first token is never supervised.

        Raises:
            RowError: nothing is supervised, or the model has no embedding for a token.
            ModelError: the model has no embedding for a token of the template.
        """
        ids = tokens.ids  # each time, the library makes a new list
        self._check_conversation(ids)
        return self._masked(rendered, tokens, ids)

    def _masked(self, rendered: RenderedRow, tokens: Tokens | EncodedTokens, ids: list[int]) -> Encoded:
        if rendered.learned_spans is None:
            return Encoded(ids, [(1, len(ids))])
        supervised = []
        for span in rendered.learned_spans:
            first, stop = tokens.overlapping(span)
            if ids[first] in self._tokeniser.control_ids and tokens.start_of(first) < span[0]:
                first += 1
            if first < stop:
                supervised.append((first, stop))
        if not supervised:
            raise RowError("no token is supervised")
        return Encoded(ids, supervised)

    def from_token_ids(self, row: Tokenised) -> Encoded:
        """A row that is given as token ids.

        Raises:
            RowError: an id is not in the tokenizer's vocabulary, or the model has no embedding for it.
        """
        if max(row.input_ids) >= len(self.tokenizer):
            raise RowError(f"input_ids contains {max(row.input_ids)}, but the tokenizer has only {len(self.tokenizer)} tokens")
        self._model_ids.check(row.input_ids, of_every_row=tuple)
        return Encoded(row.input_ids, true_spans([label != IGNORED for label in [IGNORED, *row.labels[1:]]]))

    def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The rendered text of a conversation; see `Renderer.render`."""
        return self._template.renderer.render(messages, generation_prompt)

    def end_of_turn(self) -> int | None:
        """The token that ends the assistant's turn in this template, or None."""
        if not self.tokenizer.chat_template:
            return None
        try:
            rendered = self.rows(Conversation(SHORT_CONVERSATION)).rows[0]
            tokens = self.tokenise([rendered])[0]
            sample = self._masked(rendered, tokens, tokens.ids)
        except RowError:
            return None
        return sample.input_ids[sample.supervised[-1][1] - 1]

    def _check_conversation(self, ids: Sequence[int]) -> None:
        self._model_ids.check(ids, self._ids_of_template, "the chat template")

    def _ids_of_template(self) -> Collection[int]:
        """The ids of a short conversation; empty if the template rejects it."""
        try:
            return self.tokenise(self.rows(Conversation(SHORT_CONVERSATION)).rows)[0].ids
        except RowError:
            return ()

    def _learned(self, conversation: Conversation) -> list[int] | None:
        """The numbers of the supervised messages, or None for the whole text."""
        if self._train_on == "all":
            return None
        answers = [number for number, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if self._train_on == "last":
            answers = answers[-1:]
        if conversation.trained is not None:
            answers = [number for number in answers if conversation.trained[number]]
        return answers


def document_row(text: str) -> RenderedRow:
    return RenderedRow(text, [], None)


def true_spans(marks: Sequence[bool]) -> list[Span]:
    """The spans of consecutive true marks."""
    edges = [index for index, (mark, before) in enumerate(zip([*marks, False], [False, *marks], strict=True)) if mark != before]
    return list(zip(edges[::2], edges[1::2], strict=True))
