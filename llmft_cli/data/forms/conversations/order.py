"""The order of messages: refuses what no chat template can mean. The template decides about the rest."""

from __future__ import annotations

from llmft_cli.data.forms.examples import Message, RowError


def check_order(messages: list[Message]) -> None:
    """Check that there is an answer to learn from, that no message is empty, and that tool results follow calls.

    A result may follow an assistant's text, too: some datasets write calls as text.

    Raises:
        RowError: a message is empty, a result has no call, or the last message is not the assistant's.
    """
    last = messages[-1]["role"]
    if last != "assistant" and not any(message["role"] == "assistant" for message in messages):
        raise RowError("there is no assistant turn to learn from")
    calls_seen = waiting = 0
    follows_text = False
    for position, message in enumerate(messages, 1):
        role = message["role"]
        if role == "tool":
            if not (waiting or follows_text):
                why = "but every tool call already has a result" if calls_seen else "with no call before it"
                raise RowError(f"message {position} is from tool, {why}")
            waiting -= not follows_text
            continue
        calls = message.get("tool_calls")
        if calls:
            calls_seen += len(calls)
            waiting += len(calls)
        elif role != "system" and (not (content := message["content"]) or content.isspace()):
            raise RowError(f"message {position} ({role}) is empty")
        follows_text = role == "assistant" and not calls
    if last != "assistant":
        raise RowError(f"the last message is from {last}, with no answer to learn from")
