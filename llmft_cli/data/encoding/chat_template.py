"""Renders conversations with a chat template, and locates the answers in the text.

This works for any template: the conversation is rendered again with a placeholder for every
message, and the template's own text between the placeholders shows where each message is. If
a template depends on the contents or renders tool calls, each answer is rendered after its own prompt instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from llmft_cli.data.encoding.answer_rows import AUTO, answer_rows
from llmft_cli.data.encoding.answers_by_prompt import AnswersByPrompt, refuse_spelled_tokens
from llmft_cli.data.encoding.left_out import PART_OF, TOOLS, left_out
from llmft_cli.data.encoding.rendered import Ending, RenderedExample, RenderedRow
from llmft_cli.data.encoding.renderer import Renderer
from llmft_cli.data.encoding.template_skeleton import PLACEHOLDERS, TemplateSkeleton, introductions_of
from llmft_cli.data.encoding.tokenising import Tokeniser
from llmft_cli.data.forms.examples import THINKING_KEYS, Conversation, Message, RowError
from llmft_cli.data.forms.tool_calls import with_call_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Roles = tuple[str, ...]
Around = tuple[list[str], list[int]]
REJECT, KEEP = "reject", "keep"


class RowPlan(NamedTuple):
    """The rows of conversations with certain roles.

    Attributes:
        rows: for each the number of its messages, its learned answers, and the template's text around the messages.
        beyond: as of `RenderedExample`.
    """

    rows: list[tuple[int, list[int], TemplateSkeleton]]
    beyond: str


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        rows_per_answer: as `mode` of `answer_rows`.
        on_unrendered: whether a conversation of which the template leaves out something is refused (`reject`) or kept (`keep`).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tokeniser: Tokeniser, rows_per_answer: str = AUTO, on_unrendered: str = REJECT
    ) -> None:
        self.renderer = Renderer(tokenizer, tokeniser)
        self._rows_per_answer = rows_per_answer
        self._on_unrendered = on_unrendered
        self._around: dict[tuple[Roles, bool], Around] = {}
        self._skeletons: dict[tuple[Roles, bool], TemplateSkeleton] = {}
        self._plans: dict[tuple[Roles, tuple[int, ...]], RowPlan] = {}

    def prompt(self, messages: Sequence[Message]) -> RenderedRow:
        """The conversation with the generation prompt.

        Raises:
            RowError: the template rejects the conversation or leaves out a message.
        """
        conversation = Conversation(list(messages))
        text = self.renderer.render(messages, True)
        if not depends_on_contents(conversation):
            skeleton = self._skeleton(roles_of(messages), True)
            refuse([f"message {n + 1} ({messages[n]['role']})" for n in range(len(messages)) if n not in skeleton.order])
            if found := skeleton.locate(conversation, text, []):
                return found
        refuse_spelled_tokens(conversation, self.renderer)
        return RenderedRow(text, [match.span() for match in self.renderer.control.finditer(text)], [])

    def conversation(self, conversation: Conversation, learned: Sequence[int] | None) -> RenderedExample:
        """The rows of a conversation; the learned answers and their ends of turn are supervised.

        Args:
            learned: numbers of the supervised messages, from 0, in order; None for the whole text.

        Raises:
            RowError: the template rejects the conversation, an answer cannot be found in the rendered text or has no end
                of turn, or the template leaves out something and such conversations are refused.
        """
        try:
            return self._rows(conversation, learned)
        except RowError:
            # Mistral's templates demand ids of calls, which many formats do not have.
            with suppress(RowError):
                if identified := with_call_ids(conversation):
                    return self._rows(identified, learned)
            raise

    def _rows(self, conversation: Conversation, learned: Sequence[int] | None) -> RenderedExample:
        rendered = None if depends_on_contents(conversation) else self._by_skeletons(conversation, learned)
        rendered = rendered or self._by_prompts(conversation, learned)
        if self._on_unrendered == REJECT:
            refuse(rendered.left_out)
        return rendered

    def _by_skeletons(self, conversation: Conversation, learned: Sequence[int] | None) -> RenderedExample | None:
        """The rows, located with the template's own text; None if it depends on what the messages say."""
        messages = conversation.messages
        try:
            plan = self._plan_of_roles(roles_of(messages), learned)
        except RowError as error:
            if PLACEHOLDERS.search(str(error)):  # the template quotes a message in its reason
                return None
            raise
        rows = []
        for count, answers, skeleton in plan.rows:
            text = self.renderer.whole(messages[:count])
            row = skeleton.locate(conversation, text, None if learned is None else answers)
            if row is None or len(skeleton.order) < count:
                return None
            rows.append(row)
        return RenderedExample(rows, [], plan.beyond)

    def _plan_of_roles(self, roles: Roles, learned: Sequence[int] | None) -> RowPlan:
        key = roles, tuple(learned or ())
        if key not in self._plans:
            counts = [(len(roles), list[int]())]
            if learned:
                counts = answer_rows(
                    learned,
                    len(roles),
                    self._rows_per_answer,
                    lambda number, count: number in self._skeleton(roles[:count], False).exact,
                )
            rows = [(count, answers, self._skeleton(roles[:count], False)) for count, answers in counts]
            beyond = (skeleton.beyond.get(number, "") for _, answers, skeleton in rows for number in answers)
            self._plans[key] = RowPlan(rows, next(filter(None, beyond), ""))
        return self._plans[key]

    def _by_prompts(self, conversation: Conversation, learned: Sequence[int] | None) -> RenderedExample:
        """The rows, with each answer rendered after its own prompt."""
        answers = AnswersByPrompt(conversation, learned, self.renderer)
        total = len(conversation.messages)
        try:
            places = answer_rows(learned, total, self._rows_per_answer, answers.is_exact) if learned else [(total, [])]
            rows = [answers.row(count, None if learned is None else numbers) for count, numbers in places]
        except RowError:
            # What the template leaves out altogether is a better reason than an answer that cannot be found.
            missing = left_out(answers, {total: answers.whole(total)}, {})
            refuse([name for name in missing if not name.startswith(PART_OF)])
            raise
        texts = {count: row.text for (count, _), row in zip(places, rows, strict=True)}
        spans = {
            number: row.text[start:stop]
            for (_, numbers), row in zip(places, rows, strict=True)
            for number, (start, stop) in zip(numbers, row.learned_spans or (), strict=False)
        }
        beyond = (answers.answer(number).beyond for number in learned or ())
        return RenderedExample(rows, left_out(answers, texts, spans), next(filter(None, beyond), ""))

    def _skeleton(self, roles: Roles, generation_prompt: bool) -> TemplateSkeleton:
        """The template's own text around messages of these roles, in rendered order."""
        key = (roles, generation_prompt)
        if key not in self._skeletons:
            texts, order = self._texts_around(roles, generation_prompt)
            endings: list[Ending | None] = [None]
            leads, exact, beyond = [], set(), {}
            for index, number in enumerate(order, 1):
                learnable = roles[number] == "assistant" and not generation_prompt
                own = self._own_ending(roles[: number + 1]) if learnable else None
                lead, beyond[number] = self._beginning(roles[: number + 1], texts[index - 1]) if learnable else (0, "")
                leads.append(lead)
                if own and texts[index].startswith(own[0]):
                    endings.append(own[1])
                    if (texts[:index], order[:index]) == self._before_last(roles[: number + 1]):
                        exact.add(number)
                else:
                    endings.append(self._next_ending(texts[index]) if learnable else None)
            ends = [ending or self._next_ending(text) for text, ending in zip(texts, endings, strict=True)]
            introductions = introductions_of([roles[number] for number in order], texts, ends)
            controls = [[match.span() for match in self.renderer.control.finditer(text)] for text in texts]
            self._skeletons[key] = TemplateSkeleton(
                texts, order, controls, endings, leads, introductions, frozenset(exact), beyond
            )
        return self._skeletons[key]

    def _texts_around(self, roles: Roles, generation_prompt: bool) -> Around:
        key = (roles, generation_prompt)
        if key not in self._around:
            self._around[key] = self.renderer.around(roles, generation_prompt)
        return self._around[key]

    def _before_last(self, roles: Roles) -> Around:
        texts, order = self._texts_around(roles, False)
        return texts[:-1], order

    def _own_ending(self, roles: Roles) -> tuple[str, Ending] | None:
        """The text after the last of these messages up to the end of its turn, and this; None if it has none or is not last."""
        texts, order = self._texts_around(roles, False)
        if not order or order[-1] != len(roles) - 1:
            return None
        ending = self.renderer.ending_in(texts[-1])
        return (texts[-1][: ending.stop], ending) if ending else None

    def _next_ending(self, after: str) -> Ending | None:
        """The end of turn at the beginning of the template's text after an answer that is not the last."""
        found = self.renderer.added.match(after, len(after) - len(after.lstrip()))
        return found and self.renderer.ending(found.group(), found.end())

    def _beginning(self, roles: Roles, before: str) -> tuple[int | None, str]:
        """How the last of these messages begins: its lead, as of `TemplateSkeleton`, and what only its prompt has.

        Args:
            before: the text before it.
        """
        texts, order = self._texts_around(roles, False)
        try:
            prompt_texts, prompt_order = self._texts_around(roles[:-1], True)
        except RowError:  # no prompt without a message
            return 0, ""
        *prompt_texts, prompt_end = prompt_texts
        if prompt_order != order[:-1] or prompt_texts != texts[:-2]:
            return None, ""
        if before.startswith(prompt_end):
            return len(before) - len(prompt_end), ""
        turn_begins = self._texts_around(roles[:-1], False)[0][-1]
        if not (before.startswith(turn_begins) and prompt_end.startswith(turn_begins)):
            return 0, ""
        header = prompt_end.removeprefix(turn_begins)
        place = before.rfind(header, len(turn_begins)) if header else -1
        if place >= 0:
            return len(before) - place - len(header), ""
        shared = self.renderer.end_of_common_tokens(before, prompt_end)
        return len(before) - shared, prompt_end[shared:]


def depends_on_contents(conversation: Conversation) -> bool:
    """Whether a conversation has tools or thinking, which templates render by what is in them."""
    if conversation.tools:
        return True
    keys = ("tool_calls", *THINKING_KEYS)
    return any(len(message) > 2 and any(key in message for key in keys) for message in conversation.messages)


def roles_of(messages: Sequence[Message]) -> Roles:
    return tuple(message["role"] for message in messages)


def refuse(missing: Collection[str]) -> None:
    """Raises RowError if a template leaves out something."""
    if missing:
        first = next(iter(missing))
        raise RowError(f"the chat template {'ignores' if first == TOOLS else 'leaves out'} {first}")
