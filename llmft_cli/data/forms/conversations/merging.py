"""Joins neighbouring messages of the same role."""

from __future__ import annotations

from dataclasses import replace

from llmft_cli.data.forms.examples import Conversation, Message, RowError

JOINED_ROLES = ("system", "user", "assistant")
PLAIN_KEYS = {"role", "content"}


def merged(conversation: Conversation) -> Conversation:
    """The conversation with neighbours of the same role joined by a blank line; tool calls and results stay as they are.

    Raises:
        RowError: only one of two joined answers is learned.
    """
    messages: list[Message] = []
    trained: list[bool] = []
    for number, message in enumerate(conversation.messages):
        learned = conversation.trained is not None and conversation.trained[number]
        if not (messages and can_be_joined(messages[-1], message)):
            messages.append(message)
            trained.append(learned)
            continue
        if learned != trained[-1]:
            raise RowError(f"messages {number} and {number + 1} (assistant) are to be joined, but only one of them is learned")
        texts = [text for text in (messages[-1]["content"], message["content"]) if text]
        messages[-1] = {**messages[-1], "content": "\n\n".join(texts)}
    as_text = conversation.as_text and merged(conversation.as_text)
    return replace(
        conversation, messages=messages, trained=None if conversation.trained is None else tuple(trained), as_text=as_text
    )


def can_be_joined(first: Message, second: Message) -> bool:
    """Whether two neighbours have the same role, and the second nothing but a text."""
    role = second["role"]
    return first["role"] == role and role in JOINED_ROLES and "tool_calls" not in first and second.keys() == PLAIN_KEYS


def with_parallel_calls(messages: list[Message], learned: list[bool] | None) -> tuple[list[Message], list[bool] | None]:
    """Neighbouring messages that only call tools as one message with several calls, as chat templates expect.

    Args:
        learned: for each message whether it is supervised, or None.
    """
    joined: list[Message] = []
    flags: list[bool] = []
    for number, message in enumerate(messages):
        flag = learned is not None and learned[number]
        before = joined[-1] if joined else {}
        only_calls = "tool_calls" in message and not message["content"] and len(message) == len(PLAIN_KEYS) + 1
        if only_calls and "tool_calls" in before and flags[-1] == flag:
            joined[-1] = {**before, "tool_calls": [*before["tool_calls"], *message["tool_calls"]]}
        else:
            joined.append(message)
            flags.append(flag)
    return joined, None if learned is None else flags
