"""Who speaks in a turn and where its text is: the names that public datasets use."""

from __future__ import annotations

from typing import Any

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
# Turns whose text is a call, or several.
CALLERS = ("function_call", "tool_call")
SPEAKER_KEYS = ("role", "from", "speaker", "user", "author")
TEXT_KEYS = ("content", "value", "text", "message")
USUAL_TEXT_KEYS = {"role": "content", "from": "value"}


def speaker_key(turn: dict[str, Any], usual: str) -> str:
    """The key of a turn's speaker; `usual` if there is none."""
    return next((key for key in SPEAKER_KEYS if turn.get(key) is not None), usual)


def text_key(turn: dict[str, Any], speaker: str) -> str:
    """The key of a turn's text, given the key of its speaker."""
    usual = USUAL_TEXT_KEYS.get(speaker, "text")
    return usual if turn.get(usual) is not None else next((key for key in TEXT_KEYS if turn.get(key) is not None), usual)


def role_of(speaker: str) -> str | None:
    """The role of a speaker, in lower or upper case; None if it is unknown."""
    return ROLES.get(speaker) or ROLES.get(speaker.lower())
