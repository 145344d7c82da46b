"""Conversations turn by turn: OpenAI-style messages, sharegpt turns, and the valid order of roles.

The common turn with only a role and a text has a fast path; a large file has millions of them.
"""

from __future__ import annotations

from typing import Any

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

SPEAKERS = ("user", "assistant", "system")
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
SHAREGPT_CALLS = ("function_call", "tool_call")
SHAREGPT_RESULTS = ("observation", "function_response", "tool", "tool_response")


def parse_messages(row: dict[str, Any]) -> Conversation:
    """A row of OpenAI-style `messages` (possibly under `conversations`), with optional `tools` and `system`.

    Raises:
        RowError: a message is malformed or out of order.
    """
    key = key_of_turns(row, "messages", "conversations")
    turns = turns_of(row, key)
    messages = messages_of(turns, key)
    return conversation(row, messages, learned_messages(turns, messages, key))


def parse_sharegpt(row: dict[str, Any]) -> Conversation:
    """A row of sharegpt `conversations` (possibly under `messages`), with optional `tools` and `system`.

    Raises:
        RowError: a turn is malformed or out of order.
    """
    key = key_of_turns(row, "conversations", "messages")
    turns = turns_of(row, key)
    messages = [sharegpt_message(turn, number, key) for number, turn in enumerate(turns, 1)]
    return conversation(row, messages, learned_messages(turns, messages, key))


def key_of_turns(row: dict[str, Any], usual: str, other: str) -> str:
    return other if not row.get(usual) and other in row else usual


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
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{key} must be a list of messages, not {type_name(turns)}")
    refuse_media_in_turns(turns, key)
    return turns


def messages_of(turns: list[Any], key: str) -> list[Message]:
    """OpenAI-style messages, as chat templates expect them.

    Args:
        key: the place of the list, for error messages.

    Raises:
        RowError: one is malformed.
    """
    messages = []
    for number, turn in enumerate(turns, 1):
        if type(turn) is dict and len(turn) == 2:
            role, content = turn.get("role"), turn.get("content")
            if role in SPEAKERS and type(content) is str and has_no_surrogates(content):
                messages.append({"role": role, "content": content})
                continue
        messages.append(message_of(turn, f"{key}[{number}]"))
    return messages


def message_of(turn: Any, where: str) -> Message:
    said = text_of(object_at(turn, where), "role", where)
    role = ROLES.get(said)
    if role is None:
        raise RowError(f"{where} has the unknown role {shown(said)}")
    if role == "tool":
        return result_message(turn, "content", where)
    calls = calls_of(turn, where)
    thinking = (
        {key: text for key in THINKING_KEYS if (text := optional_text_of(turn, key, where))} if role == "assistant" else {}
    )
    if not calls:
        return {"role": role, "content": content_of(turn, "content", where), **thinking}
    if role != "assistant":
        raise RowError(f"{where} is from {said} and calls tools, but only the assistant can")
    content = "" if turn.get("content") in (None, []) else content_of(turn, "content", where)
    return {"role": role, "content": content, **thinking, "tool_calls": calls}


def sharegpt_message(turn: Any, number: int, key: str) -> Message:
    if type(turn) is dict:
        speaker, value = turn.get("from"), turn.get("value")
        if type(speaker) is str and speaker in SHAREGPT_SPEAKERS and type(value) is str and has_no_surrogates(value):
            return {"role": SHAREGPT_SPEAKERS[speaker], "content": value}
    where = f"{key}[{number}]"
    speaker = text_of(object_at(turn, where), "from", where)
    if speaker in SHAREGPT_CALLS:
        if "value" not in turn:
            raise RowError(f"{where}.value is missing")
        return {"role": "assistant", "content": "", "tool_calls": calls_in(turn["value"], f"{where}.value")}
    if speaker in SHAREGPT_RESULTS:
        return result_message(turn, "value", where)
    if speaker not in SHAREGPT_SPEAKERS:
        raise RowError(f"{where} is from the unknown speaker {shown(speaker)}")
    return {"role": SHAREGPT_SPEAKERS[speaker], "content": text_of(turn, "value", where)}


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
    check_order(messages)
    tools = tools_of(row) if with_tools else None
    if learned is None:
        return Conversation(messages, tools)
    if not any(learned):
        raise RowError("every answer is excluded from training")
    return Conversation(messages, tools, (*[False] * (len(messages) - len(learned)), *learned))


def system_message_of(row: dict[str, Any]) -> list[Message]:
    """The row's system message outside its turns, as a list of one or none."""
    text = optional_text_of(row, "system") or optional_text_of(row, "system_prompt")
    return [{"role": "system", "content": text}] if text else []


def check_order(messages: list[Message]) -> None:
    """Check the order: an optional system message, then user and assistant in turn, the assistant last.

    An assistant message with tool calls is followed by their results, at most one per call.

    Raises:
        RowError: a message is out of order or empty, or the last is not the assistant's.
    """
    last = messages[-1]["role"]
    if last != "assistant" and not any(message["role"] == "assistant" for message in messages):
        raise RowError("there is no assistant turn to learn from")
    expected = "user"
    results_due: int | None = None
    for position, message in enumerate(messages, 1):
        role = message["role"]
        if role == "tool" and results_due is not None:
            if results_due == 0:
                raise RowError(f"message {position} is from tool, but every tool call already has a result")
            results_due -= 1
            expected = "assistant"
        elif role == expected:
            calls = message.get("tool_calls")
            if not calls and (not (content := message["content"]) or content.isspace()):
                raise RowError(f"message {position} ({role}) is empty")
            results_due = len(calls) if calls else None
            expected = "assistant" if role == "user" else "tool" if calls else "user"
        elif position > 1 or role != "system":
            raise RowError(f"message {position} is from {role}; expected {expected}")
    if last != "assistant":
        raise RowError(f"the last message is from {last}, with no answer to learn from")
