"""Conversations turn by turn: OpenAI-style messages and sharegpt turns.

The common turn with only a role and a text has a fast path; a large file has millions of them.
"""

from __future__ import annotations

from typing import Any

from llmft_cli.data.forms.conversations.blocks import without_blocks
from llmft_cli.data.forms.conversations.gemini import are_contents, openai_row
from llmft_cli.data.forms.conversations.merging import with_parallel_calls
from llmft_cli.data.forms.conversations.order import check_order
from llmft_cli.data.forms.conversations.shapes import as_turns, other_key
from llmft_cli.data.forms.conversations.speakers import (
    CALLERS,
    ROLES,
    USUAL_TEXT_KEYS,
    role_of,
    speaker_key,
    text_key,
)
from llmft_cli.data.forms.conversations.textual_calls import with_parsed_calls
from llmft_cli.data.forms.examples import THINKING_KEYS, Conversation, Message, RowError
from llmft_cli.data.forms.fields import (
    content_of,
    decoded,
    has_no_surrogates,
    object_at,
    optional_text_of,
    shown,
    text_of,
    type_name,
)
from llmft_cli.data.forms.learning_keys import learned_messages
from llmft_cli.data.forms.media_keys import refuse_media_in_turns
from llmft_cli.data.forms.tool_calls import calls_in, calls_of, result_message, tools_of

# Speakers of turns that have a text and nothing else.
PLAIN_SPEAKERS = {speaker: role for speaker, role in ROLES.items() if role != "tool"}


def parse_messages(row: dict[str, Any]) -> Conversation:
    """A row of OpenAI-style `messages` (or under another usual key), with optional `tools` and `system`.

    Raises:
        RowError: a message is malformed or out of order.
    """
    return parse_turns(row, key_of_turns(row, "messages", "conversations"), "role")


def parse_sharegpt(row: dict[str, Any]) -> Conversation:
    """A row of sharegpt `conversations` (or under another usual key), with optional `tools` and `system`.

    Raises:
        RowError: a turn is malformed or out of order.
    """
    return parse_turns(row, key_of_turns(row, "conversations", "messages"), "from")


def parse_turns(row: dict[str, Any], key: str, speaker: str) -> Conversation:
    """A row's conversation.

    Args:
        speaker: the key of each turn's speaker in the row's format; others are known, too.
    """
    if (plain := plain_messages(row.get(key), speaker)) is not None:
        return conversation(row, plain)
    if are_contents(row.get(key)):
        row = openai_row(row, key)
    turns = turns_in(row, key)
    messages = messages_of(turns, key, speaker)
    return conversation(row, messages, learned_messages(turns, messages, key))


def turns_in(row: dict[str, Any], key: str) -> list[Any]:
    """The turns of a conversation of any shape, one for each message.

    Raises:
        RowError: they are not a list, or none, or a content block is malformed.
    """
    return without_blocks(as_turns(turns_of(row, key), key), key)


def key_of_turns(row: dict[str, Any], usual: str, other: str) -> str:
    """The key of a row's conversation: one of the two if it has a value, else one of `OTHER_KEYS`."""
    if row.get(usual):
        return usual
    if row.get(other):
        return other
    return other_key(row) or (other if usual not in row and other in row else usual)


def turns_of(row: dict[str, Any], key: str) -> list[Any]:
    """The turns of a conversation, unchecked but for pictures and other media beside their texts.

    Raises:
        RowError: they are not a list, or none, or one has a picture.
    """
    turns = row.get(key)
    if type(turns) is not list:
        if key not in row:
            raise RowError(f"{key} is missing")
        turns = decoded(turns, key)
        turns = as_turns(turns, key) if isinstance(turns, dict) else turns
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{key} must be a list of messages, not {type_name(turns)}")
    refuse_media_in_turns(turns, key)
    return turns


def plain_messages(turns: Any, speaker: str) -> list[Message] | None:
    """The messages of turns that have only a speaker and a text each; None if a turn has anything else."""
    if type(turns) is not list or not turns:
        return None
    text = USUAL_TEXT_KEYS[speaker]
    messages = []
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return None
        said, content = turn.get(speaker), turn.get(text)
        role = PLAIN_SPEAKERS.get(said) if type(said) is str else None
        if role is None or type(content) is not str or not has_no_surrogates(content):
            return None
        messages.append({"role": role, "content": content})
    return messages


def messages_of(turns: list[Any], key: str, speaker: str = "role") -> list[Message]:
    """Turns as the messages that chat templates expect, one for each.

    Args:
        key: the place of the list, for error messages.
        speaker: the usual key of a turn's speaker.

    Raises:
        RowError: one is malformed.
    """
    plain = plain_messages(turns, speaker)
    return plain or [message_of(turn, f"{key}[{number}]", speaker) for number, turn in enumerate(turns, 1)]


def message_of(turn: Any, where: str, usual_speaker: str) -> Message:
    speaker = speaker_key(object_at(turn, where), usual_speaker)
    key = text_key(turn, speaker)
    said = text_of(turn, speaker, where)
    if said in CALLERS:
        if key not in turn:
            raise RowError(f"{where}.{key} is missing")
        return {"role": "assistant", "content": "", "tool_calls": calls_in(turn[key], f"{where}.{key}")}
    role = role_of(said)
    if role is None:
        what = "has the unknown role" if speaker == "role" else "is from the unknown speaker"
        raise RowError(f"{where} {what} {shown(said)}")
    if role == "tool":
        return result_message(turn, key, where)
    calls = calls_of(turn, where)
    thinking = (
        {name: text for name in THINKING_KEYS if (text := optional_text_of(turn, name, where))} if role == "assistant" else {}
    )
    if not calls:
        return {"role": role, "content": content_of(turn, key, where), **thinking}
    if role != "assistant":
        raise RowError(f"{where} is from {said} and calls tools, but only the assistant can")
    content = "" if turn.get(key) in (None, []) else content_of(turn, key, where)
    return {"role": role, "content": content, **thinking, "tool_calls": calls}


def conversation(
    row: dict[str, Any], messages: list[Message], learned: list[bool] | None = None, with_tools: bool = True
) -> Conversation:
    """A checked conversation, with the row's own system message and tools.

    Args:
        learned: for each of `messages` whether it is supervised, or None.
        with_tools: whether the row's format has tools.

    Raises:
        RowError: the messages are out of order, none is supervised, or system or tools are malformed.
    """
    system = system_message_of(row)
    if system and system[0] != messages[0]:
        messages = system + messages
        learned = learned and [False, *learned]
    parsed = None
    if any(message["role"] == "tool" or "tool_calls" in message for message in messages):
        messages, learned = with_parallel_calls(messages, learned)
        parsed = with_parsed_calls(messages, learned)
    check_order(messages)
    tools = tools_of(row) if with_tools else None
    if learned is not None and not any(learned):
        raise RowError("every answer is excluded from training")
    example = Conversation(messages, tools, tuple_of(learned))
    if parsed is None:
        return example
    messages, learned = parsed
    return Conversation(messages, tools, tuple_of(learned), as_text=example)


def tuple_of(learned: list[bool] | None) -> tuple[bool, ...] | None:
    return None if learned is None else tuple(learned)


def system_message_of(row: dict[str, Any]) -> list[Message]:
    """The row's system message outside its turns, a text or a list of text parts, as a list of one or none."""
    for key in ("system", "system_prompt"):
        value = row.get(key)
        if value:
            text = content_of(row, key, "") if type(value) is list else optional_text_of(row, key)
            if text.strip():
                return [{"role": "system", "content": text}]
    return []
