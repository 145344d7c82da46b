"""Calls in the assistant's text, with a tool's result after them."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, USER, talk

from llmft_cli.data.forms.conversations.textual_calls import calls_in_text
from llmft_cli.data.forms.formats import Conversation, parse

RESULT = {"role": "tool", "content": "r"}
HERMES = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def called(*calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]


F = called(("f", {"x": 1}))


def text(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("content", "before", "calls"),
    [
        (HERMES, "", F),
        (f"I look.\n\n{HERMES}\n", "I look.", F),
        (f"{HERMES}\n{HERMES}", "", F + F),
        ('<tool_call>{"arguments": "{\\"x\\": 1}", "name": "f"}</tool_call>', "", F),
        ("<tool_call>\n{'name': 'f', 'arguments': {'x': 1}}\n</tool_call>", "", F),
        ('{"name": "f", "parameters": {"x": 1}}', "", F),
        ('[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}, "id": "7"}]', "",
            [*F, {"id": "7", **called(("g", {}))[0]}]),
        ("[f(x=1)]", "", F),
        (" [f(x = 1), g.h()] ", "", called(("f", {"x": 1}), ("g.h", {}))),
        ("[Find Trains(city='Ulm (Hbf)', days=[1, 2], at={'h': 7})]", "",
            called(("Find Trains", {"city": "Ulm (Hbf)", "days": [1, 2], "at": {"h": 7}}))),
        ('[say(words="it\'s", both=(True, None), low=-1.5)]', "",
            called(("say", {"words": "it's", "both": [True, None], "low": -1.5}))),
        ("[match(pattern='\\d')]", "", called(("match", {"pattern": "\\d"}))),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_calls_of_every_spelling_are_parsed(content: str, before: str, calls: list[dict[str, Any]]) -> None:
    assert calls_in_text(content) == (before, calls)
    row = talk(USER, text(content), RESULT, ANSWER)
    as_text = Conversation([USER, text(content), RESULT, ANSWER])
    form, example = parse(row)
    expected = [USER, {"role": "assistant", "content": before, "tool_calls": calls}, RESULT, ANSWER]
    assert (form, example) == ("messages", Conversation(expected))
    assert isinstance(example, Conversation)
    assert example.as_text == as_text


@pytest.mark.parametrize(
    "content",
    [
        "I look it up.",
        "<tool_call>f(1)</tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        f"{HERMES} and so on",
        f"{HERMES} and {HERMES}",
        '<tool_call>{"name": "f", "arguments": {}}',
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '{"city": "Rome"}',
        '[{"name": "f", "arguments": {}}, 7]',
        "[]",
        "[f]",
        "[1, 2]",
        "[f(1)]",
        "[f(x=y)]",
        "[f(**{'x': 1})]",
        "[f(x=__import__('os').getcwd())]",
        "[f(x=1) + g(y=2)]",
        "[f(x=1); g(y=2)]",
        "[f(x=b'1')]",
        "[f(x={1, 2})]",
        "[f(x=" + "(" * 500 + ")" * 500 + ")]",
        "[f(" + ")" * 5000 + ")]",
        "[f(x=1)] or not",
    ],
)
def test_what_is_not_certainly_a_call_stays_text(content: str) -> None:
    messages = [USER, text(content), RESULT, ANSWER]
    form, example = parse(talk(*messages))
    assert (form, example) == ("messages", Conversation(messages))
    assert isinstance(example, Conversation)
    assert example.as_text is None


def test_a_call_without_a_result_is_an_answer_like_any_other() -> None:
    assert parse(talk(USER, text(HERMES))) == ("messages", Conversation([USER, text(HERMES)]))
    assert parse(talk(USER, text("[f(x=1)]"), USER, ANSWER))[1] == Conversation([USER, text("[f(x=1)]"), USER, ANSWER])


def test_a_last_call_is_parsed_as_the_others_of_its_row() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": F}
    messages = [USER, call, RESULT, ANSWER, USER, call]
    assert parse(talk(USER, text(HERMES), RESULT, ANSWER, USER, text(HERMES))) == ("messages", Conversation(messages))


def test_tags_around_results_are_left_to_the_template_with_a_message_for_each() -> None:
    results = {"role": "tool", "content": "<tool_response>\n1\n</tool_response>\n<tool_response>2</tool_response>", "name": "f"}
    row = talk(USER, text(HERMES + HERMES), results, {**ANSWER, "weight": 1}, USER, {**ANSWER, "weight": 0})
    both = [{"role": "tool", "content": "1", "name": "f"}, {"role": "tool", "content": "2", "name": "f"}]
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": F + F}, *both, ANSWER, USER, ANSWER]
    trained = (False, True, False, False, True, False, False)
    example = parse(row)[1]
    assert example == Conversation(messages, None, trained)
    assert isinstance(example, Conversation)
    assert example.as_text == Conversation(
        [USER, text(HERMES + HERMES), results, ANSWER, USER, ANSWER], None, (False, True, False, True, False, False)
    )


def test_more_results_than_calls_leave_the_text() -> None:
    messages = [USER, text(HERMES), RESULT, RESULT, ANSWER]
    assert parse(talk(*messages)) == ("messages", Conversation(messages))


def test_turns_are_merged_in_both_readings() -> None:
    example = parse(talk(USER, USER, text("[f(x=1)]"), RESULT, ANSWER), merge_turns=True)[1]
    question = {"role": "user", "content": "q\n\nq"}
    assert example == Conversation([question, {"role": "assistant", "content": "", "tool_calls": F}, RESULT, ANSWER])
    assert isinstance(example, Conversation)
    assert example.as_text == Conversation([question, text("[f(x=1)]"), RESULT, ANSWER])


def test_sharegpt_turns_of_toolace() -> None:
    """A call as text and a tool turn after it was refused: "message 4 is from tool; expected user"."""
    said = [("user", "q"), ("assistant", "[f(x=1)]"), ("tool", "r"), ("assistant", "a")]
    row = {"system": "s", "conversations": [{"from": speaker, "value": value} for speaker, value in said]}
    call = {"role": "assistant", "content": "", "tool_calls": F}
    assert parse(row) == ("sharegpt", Conversation([{"role": "system", "content": "s"}, USER, call, RESULT, ANSWER]))
