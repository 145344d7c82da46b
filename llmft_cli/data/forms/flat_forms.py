"""Formats with texts directly under the keys: alpaca, prompt and completion, question and answer, raw text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llmft_cli.data.forms.conversations.blocks import without_blocks
from llmft_cli.data.forms.conversations.responses import is_response, prompt_and_completion
from llmft_cli.data.forms.examples import Conversation, Document, Message, RowError
from llmft_cli.data.forms.fields import decoded, optional_text_of, text_of, to_json, type_name, valid_text
from llmft_cli.data.forms.learning_keys import learned_messages, said_of_messages
from llmft_cli.data.forms.messages import conversation, message_of, messages_of, turns_of
from llmft_cli.data.forms.rendered.reading import RenderedConversation, read_rendered, read_rendered_pair

# A row uses the first pair that it has.
QUESTIONS_AND_ANSWERS = (
    ("question", "answer"),
    ("question", "answers"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("input", "output"),
)
# The answer's key that usually belongs to each key of a question.
USUAL_ANSWERS = {"prompt": "completion", "instruction": "output", "question": "answer", "query": "response", "input": "output"}


def parse_alpaca(row: dict[str, Any]) -> Conversation:
    """`instruction`, optional `input`, `output`; optional `system`, `tools` and `history` come before them.

    Raises:
        RowError: a text is missing, empty or not text, or the history is malformed.
    """
    return conversation_of_texts(row, instruction_of(row), answer_text(row, "output"), history_of(row), has_schemas(row))


def instruction_of(row: dict[str, Any]) -> str:
    question = text_of(row, "instruction")
    addition = optional_text_of(row, "input")
    return f"{question}\n\n{addition}" if addition else question


def history_of(row: dict[str, Any]) -> list[Message]:
    """Earlier questions and answers, `[[question, answer], ...]`, as messages."""
    value = row.get("history")
    if value is None or value == "":
        return []
    history = decoded(value, "history")
    if not isinstance(history, list):
        raise RowError(f"history must be a list of questions and answers, not {type_name(history)}")
    messages = []
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"a list of {len(pair)}" if isinstance(pair, list) and pair else type_name(pair)
            raise RowError(f"history[{number}] must be a question and its answer, not {found}")
        for side, text in enumerate(pair, 1):
            if not isinstance(text, str):
                raise RowError(f"history[{number}][{side}] is {type_name(text)}, not text")
            valid_text(text, f"history[{number}][{side}]")
        messages += [user(pair[0]), assistant(pair[1])]
    return messages


def parse_prompt_completion(row: dict[str, Any]) -> Conversation:
    """`prompt` and `completion`, each a text, a message or a list of messages (OpenAI-style or sharegpt).

    Answers inside a prompt are not supervised: they are part of the question. A prompt that a chat template has
    rendered is read back into messages.

    Raises:
        RowError: one is missing or of another type, or the messages are out of order.
    """
    if not any(isinstance(row.get(side), list) or is_turn(row.get(side)) for side in ("prompt", "completion")):
        texts = text_of(row, "prompt"), answer_text(row, "completion")
        return conversation_of_texts(row, *texts, with_tools=has_schemas(row))
    prompt, _ = side_of(row, "prompt", user)
    completion, learned = side_of(row, "completion", assistant)
    if learned is None and any(message["role"] == "assistant" for message in prompt):
        learned = [message["role"] == "assistant" for message in completion]
    return conversation(row, prompt + completion, learned and [False] * len(prompt) + learned)


def conversation_of_texts(
    row: dict[str, Any], prompt: str, completion: str, history: Sequence[Message] = (), with_tools: bool = False
) -> Conversation:
    """A question and its answer after a history, or more turns if a chat template has rendered the question."""
    rendered = None if history else read_rendered_pair(prompt, completion)
    if rendered is None:
        return conversation(row, [*history, user(prompt), assistant(completion)], with_tools=with_tools)
    return conversation_of_rendered(row, rendered, with_tools)


def conversation_of_rendered(row: dict[str, Any], rendered: RenderedConversation, with_tools: bool = False) -> Conversation:
    read_back = conversation(row, rendered.messages, rendered.trained, with_tools)
    return replace(read_back, style=rendered.style)


def side_of(row: dict[str, Any], key: str, speaker: Callable[[str], Message]) -> tuple[list[Message], list[bool] | None]:
    """The messages of a prompt or completion, and which of them are supervised if they say so."""
    value = row.get(key)
    if not isinstance(value, list) and not is_turn(value):
        return [speaker(text_of(row, key) if key == "prompt" else answer_text(row, key))], None
    turns = without_blocks([value] if isinstance(value, dict) else turns_of(row, key), key)
    messages = [message_of(value, key, "role")] if turns == [value] else messages_of(turns, key)
    if key == "prompt" and any(said_of_messages(turns, messages, key)):
        raise RowError("an answer in prompt is marked to be learned, but only those in completion can be")
    return messages, learned_messages(turns, messages, key)


def is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def has_schemas(row: dict[str, Any]) -> bool:
    """Whether the row's `tools` may be schemas: in a table of texts they may be hammers."""
    tools = row.get("tools") or row.get("functions")
    return tools is not None and (not isinstance(tools, str) or tools.lstrip()[:1] in ("[", "{"))


def parse_question_answer(row: dict[str, Any]) -> Conversation:
    """A question and its answer under one pair of `QUESTIONS_AND_ANSWERS`, with optional `context`, `history`, `system`.

    Raises:
        RowError: one is missing, empty or not text, or the history is malformed.
    """
    question_key, answer_key = keys_of_pair(row)
    if (question_key, answer_key) == ("input", "output") and is_response(row):
        return parse_prompt_completion(prompt_and_completion(row))
    question = instruction_of(row) if question_key == "instruction" else text_of(row, question_key)
    if context := optional_text_of(row, "context"):
        question = f"{context}\n\n{question}"
    return conversation_of_texts(row, question, answer_of(row, answer_key), history_of(row))


def keys_of_pair(row: dict[str, Any]) -> tuple[str, str]:
    """The first pair of keys with values, or else the first pair that the row has."""
    for pair in QUESTIONS_AND_ANSWERS:
        if row.get(pair[0]) is not None and row.get(pair[1]) is not None:
            return pair
    return next((pair for pair in QUESTIONS_AND_ANSWERS if pair[0] in row and pair[1] in row), QUESTIONS_AND_ANSWERS[0])


def answer_of(row: dict[str, Any], key: str) -> str:
    """An answer's text; the first of several, as in SQuAD's `{"text": [...]}`."""
    value, place = row.get(key), key
    while isinstance(value, list) or (isinstance(value, dict) and "text" in value):
        if isinstance(value, dict):
            value, place = value["text"], f"{place}.text"
        elif is_data(value) and not any("text" in item for item in value):
            break
        elif value:
            value, place = value[0], f"{place}[1]"
        else:
            raise RowError(f"{place} is an empty list, with no answer to learn from")
    return answer_text(row, key) if place == key else answer_text({place: value}, place)


def answer_text(row: dict[str, Any], key: str) -> str:
    """An answer's text; a number, true, false, an object or a list of objects as JSON text: extraction tasks have them.

    Raises:
        RowError: it is missing, null or another list, or has a lone surrogate.
    """
    value = row.get(key)
    if type(value) is str:
        return text_of(row, key)
    if isinstance(value, dict) and value.get("role") == "assistant" and "content" in value:  # a message
        return text_of(value, "content", key)
    is_json = isinstance(value, (bool, int, dict)) or (isinstance(value, float) and math.isfinite(value)) or is_data(value)
    return to_json(value, key) if is_json else text_of(row, key)


def is_data(value: Any) -> bool:
    """Whether a value is a list of objects that are not messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and not {"role", "content"} <= item.keys() for item in value)
    )


def parse_text(row: dict[str, Any]) -> Document:
    """A raw document: `text`, or `content`.

    Raises:
        RowError: it is missing, empty or not text.
    """
    key = "content" if "content" in row and "text" not in row else "text"
    text = text_of(row, key)
    if not text or text.isspace():
        raise RowError(f"{key} is empty")
    return Document(text)


def parse_text_or_rendered(row: dict[str, Any]) -> Document | Conversation:
    """A raw document, or the conversation that its whole text is if a chat template has rendered it.

    Raises:
        RowError: as `parse_text`, or an answer of the conversation is empty.
    """
    document = parse_text(row)
    rendered = read_rendered(document.text)
    return document if rendered is None else conversation_of_rendered({}, rendered)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
