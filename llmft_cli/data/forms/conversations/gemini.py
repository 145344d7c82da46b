"""Gemini's `contents`, with `systemInstruction` and `functionDeclarations`."""

from __future__ import annotations

from typing import Any

from llmft_cli.data.forms.examples import RowError
from llmft_cli.data.forms.fields import decoded, object_at, shown, text_of, type_name
from llmft_cli.data.forms.learning_keys import marks_of
from llmft_cli.data.forms.media_keys import refuse_media_part

CONTENTS = "contents"
INSTRUCTIONS = ("systemInstruction", "system_instruction")
DECLARATIONS = ("functionDeclarations", "function_declarations")
CALLS = ("functionCall", "function_call")
RESULTS = ("functionResponse", "function_response")
# What a part may have beside its content.
NOTES = {"thought", "thoughtSignature", "thought_signature"}


def are_contents(value: Any) -> bool:
    """Whether a value is a list of turns in Gemini's form."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "parts" in value[0]


def openai_row(row: dict[str, Any], key: str) -> dict[str, Any]:
    """A row with Gemini's turns under `key`, as one with OpenAI-style turns there, and with `system` and `tools`.

    Raises:
        RowError: a turn or a part is malformed, or has something that no text stands for.
    """
    turns = [turn for number, value in enumerate(row[key], 1) for turn in turns_of(value, f"{key}[{number}]")]
    result: dict[str, Any] = {**row, key: turns}
    for name in INSTRUCTIONS:
        if row.get(name) is not None:
            result["system"] = instruction_of(row[name], name)
    if row.get("tools"):
        result["tools"] = tools_of(row["tools"])
    return result


def turns_of(value: Any, where: str) -> list[dict[str, Any]]:
    """The turns in one item of `contents`: one for each result of a function, and one for everything else."""
    item = object_at(value, where)
    role = "user" if item.get("role") is None else text_of(item, "role", where)
    turns: list[dict[str, Any]] = []
    for number, part in enumerate(parts_of(item, where), 1):
        kind, content = kind_and_content(part, f"{where}.parts[{number}]")
        place = f"{where}.parts[{number}].{kind}"
        if kind in RESULTS:
            result = object_at(content, place)
            turns.append({"role": "tool", "content": result.get("response"), "name": result.get("name")})
            continue
        text = kind == "text"
        thought = text and part.get("thought")
        # Texts precede calls in a message, and thoughts precede texts.
        begins = not turns or turns[-1]["role"] == "tool" or (text and "tool_calls" in turns[-1])
        if begins or (thought and turns[-1]["content"]):
            turns.append({"role": role, "content": "", **marks_of(item)})
        if text:
            key = "reasoning_content" if thought else "content"
            turns[-1][key] = turns[-1].get(key, "") + text_of(part, "text", f"{where}.parts[{number}]")
        else:
            call = object_at(content, place)
            call = {"id": call.get("id"), "name": call.get("name"), "arguments": call.get("args")}
            turns[-1]["tool_calls"] = [*turns[-1].get("tool_calls", []), call]
    return turns


def parts_of(item: dict[str, Any], where: str) -> list[dict[str, Any]]:
    parts = item.get("parts")
    parts = [parts] if isinstance(parts, dict) else parts
    if not isinstance(parts, list) or not parts:
        raise RowError(f"{where}.parts must be a list of parts, not {type_name(parts)}")
    return [object_at(part, f"{where}.parts[{number}]") for number, part in enumerate(parts, 1)]


def kind_and_content(part: dict[str, Any], place: str) -> tuple[str, Any]:
    """The one key of a part that holds its content, and its value."""
    # Arrow gives each part the keys of all, null where a part has none.
    kinds = [key for key, value in part.items() if value is not None and key not in NOTES]
    refuse_media_part(part, place)
    if len(kinds) != 1:
        raise RowError(f"{place} has {', '.join(kinds)} at once" if kinds else f"{place} is empty")
    if kinds[0] not in ("text", *CALLS, *RESULTS):
        raise RowError(f"{place} is {shown(kinds[0])}; only text, function calls and their results are supported")
    return kinds[0], part[kinds[0]]


def instruction_of(value: Any, key: str) -> str:
    """The text of a system instruction, itself a text or a list of parts."""
    if isinstance(value, str):
        return value
    return "".join(text_of(part, "text", f"{key}.parts[{n}]") for n, part in enumerate(parts_of(object_at(value, key), key), 1))


def tools_of(value: Any) -> Any:
    """The function declarations of all tools in one list; any other value as it is."""
    tools = decoded(value, "tools")
    if not isinstance(tools, list):
        return tools
    functions: list[Any] = []
    for tool in tools:
        key = next((key for key in DECLARATIONS if isinstance(tool, dict) and isinstance(tool.get(key), list)), None)
        functions += tool[key] if key else [tool]
    return functions
