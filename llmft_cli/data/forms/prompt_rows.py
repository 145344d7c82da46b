"""One row of a prompt file: the messages to answer, and the answers that are right.

A prompt has the messages that a training row with the same keys has, so that it gets the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmft_cli.data.forms.conversations.gemini import are_contents, openai_row
from llmft_cli.data.forms.conversations.merging import merged
from llmft_cli.data.forms.conversations.shapes import is_list_of_turns, other_key
from llmft_cli.data.forms.examples import Conversation, Message, RowError
from llmft_cli.data.forms.fields import shown, shown_keys, type_name, valid_text
from llmft_cli.data.forms.flat_forms import (
    QUESTIONS_AND_ANSWERS,
    USUAL_ANSWERS,
    assistant,
    parse_alpaca,
    parse_prompt_completion,
    parse_question_answer,
)
from llmft_cli.data.forms.media_keys import media_keys, refuse_media
from llmft_cli.data.forms.messages import conversation, messages_of, turns_in

CONVERSATIONS = ("messages", "conversations")
# The keys of a prompt in texts; the first that a row has is used.
QUESTIONS = tuple(USUAL_ANSWERS)
EXPECTED = "expected"
# Other common names of the expected answer.
ANSWERS = ("answer", "answers", "completion", "output", "response", "target", "label", "reference")
LAST_MESSAGE = "the last message"
# Stands for the answer while the prompt is read as a training row.
SOME_ANSWER = "an answer"
# Who the last message of a prompt may be from.
ASKING = ("user", "tool")
# Integers above are not exact as floats.
LARGEST_EXACT = 2**53


@dataclass(frozen=True)
class PromptRow:
    """A prompt.

    Args:
        messages: the last one is the user's.
        expected: every right answer; None if the row has none.
        choices: what was chosen where a row has several prompts or answers, in words.
    """

    messages: list[Message]
    expected: list[str] | None
    choices: list[str]


def parse_prompt(row: Any, merge_turns: bool = False) -> PromptRow:
    """A row of a prompt file.

    Args:
        merge_turns: whether to join neighbouring messages of the same role.

    Raises:
        RowError: it has no prompt, or a picture or other medium, the prompt or the answer is malformed, or the
            expected answer is ambiguous.
    """
    if isinstance(row, list) and is_list_of_turns(row):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise RowError(f"a prompt must be an object, not {type_name(row)}")
    refuse_media(row, media_keys(tuple(row)))
    key = prompt_key(row)
    messages, last = (messages_of_question(row, key), None) if key in QUESTIONS else messages_of_conversation(row, key)
    if merge_turns:
        messages = merged(Conversation(messages)).messages
    if row.get("tools") or row.get("functions"):
        raise RowError("the prompt has tools, which eval does not support")
    expected, answer_key = expected_of(row, last)
    others = [name for name in (*CONVERSATIONS, *QUESTIONS) if name not in (key, "input") and row.get(name) is not None]
    unused = [name for name in candidates(row, last) if name != answer_key and answer_key == EXPECTED]
    choices = [f"{key} is used as the prompt, and not {name}" for name in others]
    return PromptRow(messages, expected, choices + [f"{EXPECTED} is used as the answer, and not {name}" for name in unused])


def prompt_key(row: dict[str, Any]) -> str:
    """The key of the prompt in a row."""
    if "messages" in row:
        return "messages"
    for name in ("conversations", *QUESTIONS):
        if row.get(name) is not None:
            return name
    if key := other_key(row):
        return key
    present = next((name for name in ("conversations", *QUESTIONS) if name in row), None)
    if present:
        raise RowError(f"{present} is null, and there is no other prompt")
    raise RowError(f"there is no prompt among the keys {shown_keys(row)}" if row else "the object is empty")


def messages_of_conversation(row: dict[str, Any], key: str) -> tuple[list[Message], str | None]:
    """The messages up to the last one of the user, and the answer after them if there is one."""
    if are_contents(row.get(key)):
        row = openai_row(row, key)
    turns = turns_in(row, key)
    of_sharegpt = isinstance(turns[0], dict) and turns[0].get("role") is None and turns[0].get("from") is not None
    messages = messages_of(turns, key, "from" if of_sharegpt else "role")
    *before, last = messages
    if last["role"] == "assistant" and before:
        if "tool_calls" in last:
            raise RowError("the last message calls tools, which eval does not support")
        return asked(conversation(row, messages, with_tools=False)), last["content"]
    return asked(conversation(row, [*messages, assistant(SOME_ANSWER)], with_tools=False)), None


def asked(whole: Conversation) -> list[Message]:
    """The messages before the last answer.

    Raises:
        RowError: the last of them asks for no answer.
    """
    messages = whole.messages[:-1]
    if messages[-1]["role"] not in ASKING:
        raise RowError(f"message {len(messages)} is from {messages[-1]['role']}; a prompt ends with the user's")
    return messages


def messages_of_question(row: dict[str, Any], key: str) -> list[Message]:
    """The messages of a prompt in texts: those of a training row with the same keys."""
    parsers: dict[tuple[str, str], Callable[[dict[str, Any]], Conversation]] = {
        ("instruction", "output"): parse_alpaca,
        ("prompt", "completion"): parse_prompt_completion,
        **dict.fromkeys(QUESTIONS_AND_ANSWERS, parse_question_answer),
    }
    answer = next((name for name in ANSWERS if (key, name) in parsers and row.get(name) is not None), USUAL_ANSWERS[key])
    surplus = {*QUESTIONS, *CONVERSATIONS, *ANSWERS} - {key, "input"}
    others = {name: cell for name, cell in row.items() if name not in surplus}
    return asked(parsers[key, answer]({**others, answer: SOME_ANSWER}))


def candidates(row: dict[str, Any], last: str | None) -> dict[str, Any]:
    """Everything in a row that may be the expected answer, by its name."""
    named = {name: row[name] for name in (EXPECTED, *ANSWERS) if row.get(name) is not None}
    return named if last is None else {**named, LAST_MESSAGE: last}


def expected_of(row: dict[str, Any], last: str | None) -> tuple[list[str] | None, str | None]:
    """The expected answers and the key that has them; None without one.

    Raises:
        RowError: they are no answers, or several keys could have them and differ.
    """
    named = candidates(row, last)
    if EXPECTED in named:
        return answers_in(named[EXPECTED], EXPECTED), EXPECTED
    found = {name: answers_in(value, name) for name, value in named.items()}
    if not found:
        return None, None
    name, *others = found
    for other in others:
        if found[other] != found[name]:
            raise RowError(f"both {name} and {other} may be the expected answer: name the right one {EXPECTED}")
    return found[name], name


def answers_in(value: Any, name: str) -> list[str]:
    """The right answers in a value: a text, a number, true or false, or a list of them.

    Raises:
        RowError: it is something else.
    """
    if isinstance(value, dict) and "text" in value:  # as SQuAD has them
        return answers_in(value["text"], f"{name}.text")
    if not isinstance(value, list):
        return texts_of_answer(value, name)
    if not value:
        raise RowError(f"{name} is an empty list, with no right answer")
    texts = [text for number, item in enumerate(value, 1) for text in texts_of_answer(item, f"{name}[{number}]")]
    return list(dict.fromkeys(texts))


def texts_of_answer(value: Any, name: str) -> list[str]:
    """One answer as text; a number in each way to write it."""
    if isinstance(value, dict) and value.get("role") == "assistant":  # a completion as messages
        value, name = value.get("content"), f"{name}.content"
    if isinstance(value, str):
        return [valid_text(value, name)]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{name} is {value}, which is no answer")
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_EXACT:
        return [f"{value:.0f}", f"{value:.1f}"]
    if isinstance(value, int | float):
        return [str(value)]
    raise RowError(f"{name} is {shown(value)}: an answer is a text, a number, true/false, or a list of them")
