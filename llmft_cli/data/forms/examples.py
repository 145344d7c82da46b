"""What a training row holds once its form is understood: a conversation, a document, or token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# The label of a token that is not learned: what torch's loss ignores.
IGNORED = -100

# Role and content, and what else the chat template looks at (tool_calls, name, ...).
Message = dict[str, Any]

# Where messages keep the thinking before an answer; templates know one or the other name.
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")


class RowError(Exception):
    """Why one row cannot be used; the text goes to rejected.jsonl."""


@dataclass(frozen=True)
class Conversation:
    """Messages of which the last is the assistant's.

    Attributes:
        messages: with the roles system, user, assistant and tool; a content is always text.
        tools: JSON schemas of the functions that the assistant may call, as chat templates take them.
        trained: for each message whether it may be learned, or None where the row does not say.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    trained: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Document:
    text: str


@dataclass(frozen=True)
class Tokenised:
    """A row that comes as token ids; `labels` are -100 where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


Example = Conversation | Document | Tokenised
