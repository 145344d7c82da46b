"""The content of a parsed training row: a conversation, a document, or token ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# The label of an unsupervised token, which torch's cross-entropy ignores.
IGNORED = -100

# Role, content, and whatever else the chat template reads (tool_calls, name, ...).
Message = dict[str, Any]

# Keys for the thinking before an answer; each template knows one of them.
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")


LONGEST_REASON = 300


class RowError(Exception):
    """Why one row cannot be used; the text goes to rejected.jsonl, on one line and of at most `LONGEST_REASON` characters."""

    def __init__(self, reason: str) -> None:
        super().__init__(brief(reason))


def brief(reason: str) -> str:
    """A reason without line breaks, and shortened in the middle if it is long: templates and keys may put any text in it."""
    text = " ".join(reason.split()) if "\n" in reason or "\r" in reason else reason
    if len(text) <= LONGEST_REASON:
        return text
    return f"{text[: LONGEST_REASON - 85]} ... {text[-80:]}"


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's.

    Attributes:
        messages: roles are system, user, assistant and tool; the content is always text.
        tools: JSON schemas of the functions that the assistant may call, as chat templates expect them.
        trained: for each message whether it is supervised; None if the row does not say.
        style: of the template that the row's text was rendered with (`rendered.styles`); empty if it was not.
        as_text: the same with calls in the assistant's text, where the row has them there; for templates without calls.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    trained: tuple[bool, ...] | None = None
    style: str = ""
    as_text: Conversation | None = field(default=None, compare=False)

    @property
    def first_answer(self) -> int | None:
        """The number of the first answer that the row does not exclude from training; what comes before is its prompt."""
        roles = enumerate(message["role"] for message in self.messages)
        return next((n for n, role in roles if role == "assistant" and (self.trained is None or self.trained[n])), None)


@dataclass(frozen=True)
class Document:
    text: str


@dataclass(frozen=True)
class Tokenised:
    """A row of token ids; `labels` are -100 for unsupervised tokens."""

    input_ids: list[int]
    labels: list[int]


Example = Conversation | Document | Tokenised
