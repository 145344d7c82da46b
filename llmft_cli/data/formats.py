"""The forms in which people keep training rows, brought to one: a conversation or a document.

Forms: OpenAI-style messages, sharegpt conversations, alpaca, prompt/completion, raw text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

# Role and content, and what else the chat template looks at (tool_calls, name, ...).
Message = dict[str, Any]

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}
ROLES = ("system", "user", "assistant")
# Forms whose keys hold texts, by the keys that a row of the form has.
FLAT_FORMS = {
    "alpaca": {"instruction", "output"},
    "prompt-completion": {"prompt", "completion"},
    "text": {"text"},
}
# JSON can spell half of a surrogate pair, which is no character and has no UTF-8 form.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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


def recognise(value: Any) -> str:
    """The form of a row, by its keys.

    Raises:
        RowError: it has none of the known forms.
    """
    if not isinstance(value, Mapping):
        raise RowError(f"a row must be an object, not {kind_of(value)}")
    # A table has every column in every row: where a form's keys are null, look for another form first.
    given = {key for key, cell in value.items() if cell is not None}
    form = form_with(given, value) or form_with(set(value), value)
    if form is None:
        keys = ", ".join(map(repr, value))
        raise RowError(f"no known form has the keys {keys}" if keys else "the object is empty")
    return form


def form_with(keys: Set[str], row: Mapping[str, Any]) -> str | None:
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        turns = row["conversations"]
        first = turns[0] if isinstance(turns, list) and turns else None
        return "messages" if isinstance(first, Mapping) and "role" in first else "sharegpt"
    return next((form for form, wanted in FLAT_FORMS.items() if keys >= wanted), None)


def parse(value: Any, form: str = "auto") -> tuple[str, Example]:
    """The form of a row and its content.

    Raises:
        RowError: it cannot be used, and why.
    """
    name = recognise(value) if form == "auto" else form
    if not isinstance(value, Mapping):
        raise RowError(f"a row must be an object, not {kind_of(value)}")
    return name, PARSERS[name](value)


def parse_messages(row: Mapping[str, Any]) -> Conversation:
    return checked(messages_of(row, "conversations" if row.get("messages") is None and "conversations" in row else "messages"))


def messages_of(row: Mapping[str, Any], key: str) -> list[Message]:
    messages = []
    for where, turn in turns_of(row, key):
        role = text_of(turn, "role", where)
        if role not in ROLES:
            raise RowError(f"{where} has the unknown role {role!r}")
        messages.append({"role": role, "content": content_of(turn, where)})
    return messages


def parse_prompt_messages(value: Any) -> list[Message]:
    """The messages of a prompt to answer: `messages` that end with the user's, or a text `prompt`.

    Raises:
        RowError: it is neither.
    """
    if not isinstance(value, Mapping):
        raise RowError(f"a prompt must be an object, not {kind_of(value)}")
    if "messages" not in value:
        return [{"role": "user", "content": text_of(value, "prompt")}]
    messages = messages_of(value, "messages")
    checked([*messages, {"role": "assistant", "content": "an answer"}])
    return messages


def parse_sharegpt(row: Mapping[str, Any]) -> Conversation:
    messages = system_message_of(row)
    for where, turn in turns_of(row, "conversations"):
        speaker = text_of(turn, "from", where)
        if speaker not in SHAREGPT_ROLES:
            raise RowError(f"{where} is from the unknown speaker {speaker!r}")
        messages.append({"role": SHAREGPT_ROLES[speaker], "content": text_of(turn, "value", where)})
    return checked(messages)


def parse_alpaca(row: Mapping[str, Any]) -> Conversation:
    question = text_of(row, "instruction")
    if addition := optional_text_of(row, "input"):
        question += "\n\n" + addition
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text_of(row, "output")}]
    return checked(system_message_of(row) + turns)


def parse_prompt_completion(row: Mapping[str, Any]) -> Conversation:
    return checked(
        [
            {"role": "user", "content": text_of(row, "prompt")},
            {"role": "assistant", "content": text_of(row, "completion")},
        ]
    )


def parse_text(row: Mapping[str, Any]) -> Document:
    text = text_of(row, "text")
    if not text.strip():
        raise RowError("text is empty")
    return Document(text)


PARSERS: dict[str, Callable[[Mapping[str, Any]], Example]] = {
    "messages": parse_messages,
    "sharegpt": parse_sharegpt,
    "alpaca": parse_alpaca,
    "prompt-completion": parse_prompt_completion,
    "text": parse_text,
}


def checked(messages: list[Message]) -> Conversation:
    """A conversation in order: an optional system message, then user and assistant in turn, the assistant last."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not any(turn["role"] == "assistant" for turn in turns):
        raise RowError("there is no assistant turn to learn from")
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        position = number + 1 + len(messages) - len(turns)
        if turn["role"] != expected:
            raise RowError(f"message {position} is from {turn['role']} where {expected} should speak")
        if not turn["content"].strip():
            raise RowError(f"message {position} ({turn['role']}) is empty")
    if turns[-1]["role"] != "assistant":
        raise RowError("the last message is from user, with no answer to learn from")
    return Conversation(messages)


def turns_of(row: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The turns of a conversation, each with the name of its place."""
    if key not in row:
        raise RowError(f"{key} is missing")
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{key} must be a list with messages, not {kind_of(turns)}")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise RowError(f"{key}[{number}] is {kind_of(turn)}, not an object")
        yield f"{key}[{number}]", turn


def text_of(row: Mapping[str, Any], key: str, where: str = "") -> str:
    name = f"{where}.{key}" if where else key
    if key not in row:
        raise RowError(f"{name} is missing")
    if not isinstance(row[key], str):
        raise RowError(f"{name} is {kind_of(row[key])}, not text")
    text: str = row[key]
    if half := LONE_SURROGATE.search(text):
        raise RowError(f"{name} has half a character (\\u{ord(half.group()):04x} without its other half)")
    return text


def optional_text_of(row: Mapping[str, Any], key: str) -> str:
    """A text that may be missing, null or blank: then it is empty."""
    text = "" if row.get(key) is None else text_of(row, key)
    return text if text.strip() else ""


def system_message_of(row: Mapping[str, Any]) -> list[Message]:
    """The system message that a row has beside its turns, as a list of one or none."""
    text = optional_text_of(row, "system")
    return [{"role": "system", "content": text}] if text else []


def content_of(turn: Mapping[str, Any], where: str) -> str:
    """A message's text, also where it comes in parts (`[{"type": "text", "text": ...}]`)."""
    parts = turn.get("content")
    if not isinstance(parts, list) or not parts:
        return text_of(turn, "content", where)
    texts = []
    for number, part in enumerate(parts, 1):
        place = f"{where}.content[{number}]"
        if not isinstance(part, Mapping):
            raise RowError(f"{place} is {kind_of(part)}, not an object")
        if part.get("type") != "text":
            raise RowError(f"{place} is of the type {part.get('type')!r}, and only 'text' can be used")
        texts.append(text_of(part, "text", place))
    return "".join(texts)


def kind_of(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return "an empty list" if value == [] else names.get(type(value), type(value).__name__)
