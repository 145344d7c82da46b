"""Formats with texts directly under the keys: alpaca, prompt and completion, question and answer, raw text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmft_cli.data.forms.examples import Conversation, Document, Message, RowError
from llmft_cli.data.forms.fields import decoded, optional_text_of, text_of, type_name, valid_text
from llmft_cli.data.forms.learning_keys import learned_messages, said_of_messages
from llmft_cli.data.forms.messages import conversation, messages_of, turns_of

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
    turns = [*history_of(row), user(instruction_of(row)), assistant(text_of(row, "output"))]
    return conversation(row, turns, with_tools=has_schemas(row))


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
    """`prompt` and `completion`, each a text or a list of messages.

    Answers inside a prompt of messages are not supervised: they are part of the question.

    Raises:
        RowError: one is missing or of another type, or the messages are out of order.
    """
    if not isinstance(row.get("prompt"), list) and not isinstance(row.get("completion"), list):
        turns = [user(text_of(row, "prompt")), assistant(text_of(row, "completion"))]
        return conversation(row, turns, with_tools=has_schemas(row))
    prompt, _ = side_of(row, "prompt", user)
    completion, learned = side_of(row, "completion", assistant)
    if learned is None and any(message["role"] == "assistant" for message in prompt):
        learned = [message["role"] == "assistant" for message in completion]
    return conversation(row, prompt + completion, learned and [False] * len(prompt) + learned)


def side_of(row: dict[str, Any], key: str, speaker: Callable[[str], Message]) -> tuple[list[Message], list[bool] | None]:
    """The messages of a prompt or completion, and which of them are supervised if they say so."""
    if not isinstance(row.get(key), list):
        return [speaker(text_of(row, key))], None
    turns = turns_of(row, key)
    messages = messages_of(turns, key)
    if key == "prompt" and any(said_of_messages(turns, messages, key)):
        raise RowError("an answer in prompt is marked to be learned, but only those in completion can be")
    return messages, learned_messages(turns, messages, key)


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
    question = instruction_of(row) if question_key == "instruction" else text_of(row, question_key)
    if context := optional_text_of(row, "context"):
        question = f"{context}\n\n{question}"
    return conversation(row, [*history_of(row), user(question), assistant(answer_of(row, answer_key))], with_tools=False)


def keys_of_pair(row: dict[str, Any]) -> tuple[str, str]:
    """The first pair of keys with values, or else the first pair that the row has."""
    for pair in QUESTIONS_AND_ANSWERS:
        if row.get(pair[0]) is not None and row.get(pair[1]) is not None:
            return pair
    return next((pair for pair in QUESTIONS_AND_ANSWERS if pair[0] in row and pair[1] in row), QUESTIONS_AND_ANSWERS[0])


def answer_of(row: dict[str, Any], key: str) -> str:
    """An answer's text; the first of several, as in SQuAD's `{"text": [...]}`."""
    value, place = row.get(key), key
    while isinstance(value, (list, dict)):
        if isinstance(value, dict):
            place = f"{place}.text"
            if "text" not in value:
                raise RowError(f"{place} is missing")
            value = value["text"]
        elif value:
            value, place = value[0], f"{place}[1]"
        else:
            raise RowError(f"{place} is an empty list, with no answer to learn from")
    if place == key:
        return text_of(row, key)
    if not isinstance(value, str):
        raise RowError(f"{place} is {type_name(value)}, not text")
    return valid_text(value, place)


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


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
