"""Messages whose content is a list of typed blocks: Anthropic's, LLaMA-Factory's, and the texts of OpenAI's Responses.

One such message may stand for several: a user's message with the results of tools has one for each result.
"""

from __future__ import annotations

from typing import Any

from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.fields import content_of, object_at, shown, text_of
from llmft_cli.data.forms.media_keys import refuse_media_part
from llmft_cli.data.forms.tool_calls import calls_in

TEXTS = ("text", "input_text", "output_text")
CALL, RESULT, THINKING = "tool_use", "tool_result", "thinking"
REASONING, JSON_CALL = "reasoning", "tool_call"  # LLaMA-Factory's, with texts under `value`
BLOCKS = (*TEXTS[1:], CALL, RESULT, THINKING, REASONING, JSON_CALL)  # a tuple, as a value of a row may have no hash


def without_blocks(turns: list[Any], key: str) -> list[Any]:
    """Turns with `tool_calls`, tool messages and `reasoning_content` instead of content blocks.

    Args:
        key: the place of the list, for error messages.

    Raises:
        RowError: a block is malformed, or of a type that no text stands for.
    """
    if not any(type(turn) is dict and type(turn.get("content")) is list for turn in turns):
        return turns
    return [
        part
        for number, turn in enumerate(turns, 1)
        for part in (messages_of_blocks(turn, f"{key}[{number}]") if isinstance(turn, dict) and has_blocks(turn) else [turn])
    ]


def has_blocks(turn: dict[str, Any]) -> bool:
    content = turn.get("content")
    return (
        type(content) is list
        and turn.get("role") in ("user", "assistant", "system", "developer")
        and any(isinstance(part, dict) and part.get("type") in BLOCKS for part in content)
    )


def messages_of_blocks(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The messages of one turn, in the order of its blocks."""
    others = {key: value for key, value in turn.items() if key != "content"}
    messages: list[dict[str, Any]] = []
    for number, value in enumerate(turn["content"], 1):
        place = f"{where}.content[{number}]"
        block = object_at(value, place)
        kind = block.get("type")
        if kind == RESULT:
            messages.append(result_of(block, turn["role"], place))
            continue
        if not messages or not fits(kind, messages[-1]):
            messages.append({**others, "content": ""})
        add(block, kind, messages[-1], place)
    return messages


def fits(kind: Any, message: dict[str, Any]) -> bool:
    """Whether a block can be part of the message before it, where thinking precedes text, and text precedes calls."""
    if message["role"] == "tool":
        return False
    if kind in TEXTS:
        return "tool_calls" not in message
    return kind not in (THINKING, REASONING) or not (message["content"] or "tool_calls" in message)


def add(block: dict[str, Any], kind: Any, message: dict[str, Any], place: str) -> None:
    """Add a block to a message."""
    if kind in TEXTS:
        message["content"] += text_of(block, "value" if "text" not in block and "value" in block else "text", place)
    elif kind in (THINKING, REASONING):
        before = message.get("reasoning_content")
        thought = content_of(block, "thinking" if kind == THINKING else "value", place)
        message["reasoning_content"] = f"{before}\n\n{thought}" if before else thought
    elif kind == CALL:
        call = {"id": block.get("id"), "name": block.get("name"), "arguments": block.get("input")}
        message["tool_calls"] = [*message.get("tool_calls", []), call]
    elif kind == JSON_CALL:
        message["tool_calls"] = [*message.get("tool_calls", []), *calls_in(block.get("value"), f"{place}.value")]
    else:
        refuse_media_part(block, place)
        raise RowError(f"{place} has the type {shown(kind)}; only text, tool and thinking blocks are supported")


def result_of(block: dict[str, Any], role: str, place: str) -> dict[str, Any]:
    """A tool's result as a message; an empty text if the block has no content."""
    if role != "user":
        raise RowError(f"{place} is a tool result, but the message is from {role}")
    text = "" if block.get("content") in (None, []) else content_of(block, "content", place)
    return {"role": "tool", "content": text, "tool_call_id": block.get("tool_use_id")}
