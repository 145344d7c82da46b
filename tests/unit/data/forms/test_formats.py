from __future__ import annotations

from typing import Any

import pytest

from llmft_cli.data.forms.formats import PARSERS, Conversation, Document, RowError, Tokenised, parse
from llmft_cli.settings import config

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def messages(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def preference(column: str) -> str:
    return (
        "chosen and rejected are a preference pair, which llmft cannot train on; "
        f"--columns {column}=chosen trains on the chosen side"
    )


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        ({"messages": [SYSTEM, USER, ANSWER]}, "messages", [SYSTEM, USER, ANSWER]),
        ({"messages": [{**USER, "name": "x", "weight": 0}, ANSWER], "id": 7}, "messages", [USER, ANSWER]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}, "messages", [USER, ANSWER]),
        (
            {"messages": [{"role": "system", "content": ""}, USER, ANSWER]},
            "messages",
            [{**SYSTEM, "content": ""}, USER, ANSWER],
        ),
        ({"conversations": [USER, ANSWER]}, "messages", [USER, ANSWER]),
        ({"messages": None, "conversations": [USER, ANSWER]}, "messages", [USER, ANSWER]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            "sharegpt",
            [SYSTEM, USER, ANSWER],
        ),
        (
            {"conversations": [{"from": "user", "value": "q"}, {"from": "bot", "value": "a"}], "system": None},
            "sharegpt",
            [USER, ANSWER],
        ),
        ({"instruction": "q", "output": "a"}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "input": "", "output": "a", "text": "all"}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "input": None, "output": "a", "system": " "}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "input": " \n", "output": "a"}, "alpaca", [USER, ANSWER]),
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s"},
            "alpaca",
            [SYSTEM, {**USER, "content": "q\n\ni"}, ANSWER],
        ),
        ({"prompt": "q", "completion": "a"}, "prompt-completion", [USER, ANSWER]),
        ({"instruction": None, "output": None, "prompt": "q", "completion": "a"}, "prompt-completion", [USER, ANSWER]),
        ({"messages": [], "conversations": "", "prompt": "q", "completion": "a"}, "prompt-completion", [USER, ANSWER]),
        ({"messages": "", "conversations": None, "prompt": "q", "completion": "a"}, "prompt-completion", [USER, ANSWER]),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt", [USER, ANSWER]),
        ({"messages": [{**USER, "from": None}, ANSWER]}, "messages", [USER, ANSWER]),
        (
            {"messages": ' [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
            "messages",
            [USER, ANSWER],
        ),
        (
            {"conversations": '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'},
            "sharegpt",
            [USER, ANSWER],
        ),
        ({"messages": [USER, ANSWER], "system": "s"}, "messages", [SYSTEM, USER, ANSWER]),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "s"}, "messages", [SYSTEM, USER, ANSWER]),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "t"}, "messages", [{**SYSTEM, "content": "t"}, SYSTEM, USER, ANSWER]),
        ({"messages": [USER, ANSWER], "system": [{"type": "text", "text": "s"}]}, "messages", [SYSTEM, USER, ANSWER]),
        ({"messages": [USER, ANSWER], "chosen": [ANSWER], "rejected": [ANSWER]}, "messages", [USER, ANSWER]),
        (
            {"instruction": "q", "output": "a", "history": [["x", "y"]], "system": "s"},
            "alpaca",
            [SYSTEM, {**USER, "content": "x"}, {**ANSWER, "content": "y"}, USER, ANSWER],
        ),
        (
            {"instruction": "q", "output": "a", "history": '[["x", "y"]]'},
            "alpaca",
            [{**USER, "content": "x"}, {**ANSWER, "content": "y"}, USER, ANSWER],
        ),
        ({"instruction": "q", "output": "a", "history": []}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "output": "a", "history": None}, "alpaca", [USER, ANSWER]),
        ({"instruction": "q", "output": "a", "history": ""}, "alpaca", [USER, ANSWER]),
        ({"prompt": "q", "completion": "a", "system": "s"}, "prompt-completion", [SYSTEM, USER, ANSWER]),
        ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, "prompt-completion", [SYSTEM, USER, ANSWER]),
        ({"prompt": [USER], "completion": "a"}, "prompt-completion", [USER, ANSWER]),
        ({"prompt": "q", "completion": [ANSWER, USER, ANSWER]}, "prompt-completion", [USER, ANSWER, USER, ANSWER]),
        ({"prompt": "q", "completion": "a", "question": "x", "answer": "y"}, "prompt-completion", [USER, ANSWER]),
        ({"question": "q", "answer": "a"}, "question-answer", [USER, ANSWER]),
        ({"question": "q", "answer": ["a", "b"]}, "question-answer", [USER, ANSWER]),
        ({"question": "q", "answer": {"text": "a"}}, "question-answer", [USER, ANSWER]),
        ({"question": "q", "answer": {"value": "é"}}, "question-answer", [USER, {**ANSWER, "content": '{"value": "é"}'}]),
        ({"question": "q", "answers": {"text": [7]}}, "question-answer", [USER, {**ANSWER, "content": "7"}]),
        ({"instruction": "q", "output": 4}, "alpaca", [USER, {**ANSWER, "content": "4"}]),
        ({"instruction": "q", "output": 2.5}, "alpaca", [USER, {**ANSWER, "content": "2.5"}]),
        ({"instruction": "q", "output": False}, "alpaca", [USER, {**ANSWER, "content": "false"}]),
        (
            {"instruction": "q", "output": {"city": "Rome", "sights": ["Forum"]}},
            "alpaca",
            [USER, {**ANSWER, "content": '{"city": "Rome", "sights": ["Forum"]}'}],
        ),
        (
            {"input": "q", "output": [{"x": 1}, {"x": 2}]},
            "question-answer",
            [USER, {**ANSWER, "content": '[{"x": 1}, {"x": 2}]'}],
        ),
        ({"instruction": "q", "output": [{"role": "owner"}]}, "alpaca", [USER, {**ANSWER, "content": '[{"role": "owner"}]'}]),
        ({"prompt": "q", "completion": {"x": 1}}, "prompt-completion", [USER, {**ANSWER, "content": '{"x": 1}'}]),
        ({"prompt": [USER], "completion": 1}, "prompt-completion", [USER, {**ANSWER, "content": "1"}]),
        ({"prompt": "q", "completion": ANSWER}, "prompt-completion", [USER, ANSWER]),
        (
            {"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}, "title": "t"},
            "question-answer",
            [{**USER, "content": "c\n\nq"}, ANSWER],
        ),
        ({"question": "q", "context": " ", "answer": "a"}, "question-answer", [USER, ANSWER]),
        ({"question": "q", "answer": None, "response": "a"}, "question-answer", [USER, ANSWER]),
        ({"system_prompt": "s", "question": "q", "response": "a"}, "question-answer", [SYSTEM, USER, ANSWER]),
        ({"query": "q", "response": "a"}, "question-answer", [USER, ANSWER]),
        ({"query": "q", "answer": "a"}, "question-answer", [USER, ANSWER]),
        ({"prompt": "q", "response": "a"}, "question-answer", [USER, ANSWER]),
        ({"input": "q", "output": "a"}, "question-answer", [USER, ANSWER]),
        ({"instruction": "q", "response": "a"}, "question-answer", [USER, ANSWER]),
        (
            {"instruction": "q", "input": "i", "context": "c", "response": "a"},
            "question-answer",
            [{**USER, "content": "c\n\nq\n\ni"}, ANSWER],
        ),
    ],
)
def test_conversations_of_every_form(row: Any, form: str, expected: Any) -> None:
    assert parse(row) == (form, Conversation(expected))


def test_a_text_is_a_document() -> None:
    assert parse({"text": " a\0 "}) == ("text", Document(" a\0 "))
    assert parse({"text": "t", "prompt": "q", "completion": "a"}, "text") == ("text", Document("t"))
    assert parse({"content": "t", "id": 7, "url": "u", "prompt": None}) == ("text", Document("t"))
    assert parse({"content": "t", "prompt": "q"}, "text") == ("text", Document("t"))


def test_token_ids_are_taken_before_the_texts_they_were_made_of() -> None:
    assert parse({"text": "t", "input_ids": [5, 6]}) == ("tokens", Tokenised([5, 6], [-100, 6]))
    assert parse({"text": "t", "input_ids": None}) == ("text", Document("t"))
    assert parse({"text": "t", "input_ids": ""}) == ("text", Document("t"))


def test_answers_within_a_prompt_are_not_learned() -> None:
    row = {"prompt": [SYSTEM, USER, ANSWER, USER], "completion": [ANSWER]}
    expected = Conversation([SYSTEM, USER, ANSWER, USER, ANSWER], None, (False, False, False, False, True))
    assert parse(row) == ("prompt-completion", expected)
    row = {
        "prompt": [USER, ANSWER, USER],
        "completion": [{**ANSWER, "weight": 1}, USER, {**ANSWER, "weight": 0}],
        "system": "s",
    }
    expected = Conversation([SYSTEM, USER, ANSWER, USER, ANSWER, USER, ANSWER], None, (*[False] * 4, True, False, False))
    assert parse(row) == ("prompt-completion", expected)
    expected = Conversation([USER, ANSWER, ANSWER], None, (False, False, True))
    assert parse({"prompt": [USER, ANSWER], "completion": "a"}) == ("prompt-completion", expected)


def test_every_form_of_the_setting_has_a_parser() -> None:
    assert ("auto", *PARSERS) == config.FIELDS["format"].setting.choices


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a", "a row must be an object, not text"),
        (1, "a row must be an object, not a number"),
        (None, "a row must be an object, not null"),
        (True, "a row must be an object, not true/false"),
        ([], "a row must be an object, not an empty list"),
        ([USER], "there is no assistant turn to learn from"),
        ([7], "a row must be an object, not a list"),
        (["q", "a"], "a row must be an object, not a list"),
        ({}, "the object is empty"),
        ({"instruction": "q", "\ud800": 1}, "no known format has the keys 'instruction', '\\ud800'"),
        ({"messages": None}, "messages must be a list of messages, not null"),
        ({"messages": []}, "messages must be a list of messages, not an empty list"),
        ({"messages": {}}, "messages must be a list of messages, not an object"),
        ({"messages": ["a"]}, "messages[1] is text, not an object"),
        ({"messages": [USER, None]}, "messages[2] is null, not an object"),
        ({"messages": [{"content": "q"}]}, "messages[1].role is missing"),
        ({"messages": [{"role": "user"}, ANSWER]}, "messages[1].content is missing"),
        ({"messages": [{"role": 1, "content": "q"}]}, "messages[1].role is a number, not text"),
        (messages(("critic", "x")), "messages[1] has the unknown role 'critic'"),
        (messages(("x" * 99, "x")), "messages[1] has the unknown role 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
        ({"messages": "[]"}, "messages must be a list of messages, not an empty list"),
        ({"messages": "[{]"}, "messages is not valid JSON: Expecting property name enclosed in double quotes at character 3"),
        ({"messages": "[" * 100_000}, "messages is nested too deeply"),
        ({"messages": "[NaN]"}, "messages is not valid JSON: NaN is not a JSON value"),
        (messages(("user", []), ("assistant", "a")), "messages[1].content is an empty list, not text"),
        (messages(("user", ["a"]), ("assistant", "a")), "messages[1].content[1] is text, not an object"),
        (messages(("user", [{"type": "text"}]), ("assistant", "a")), "messages[1].content[1].text is missing"),
        (
            messages(("user", "\udc00"), ("assistant", "a")),
            "messages[1].content has a lone surrogate (\\udc00)",
        ),
        (messages(("user", "q"), ("assistant", None)), "messages[2].content is null, not text"),
        (messages(("user", "q")), "there is no assistant turn to learn from"),
        (messages(("system", "s")), "there is no assistant turn to learn from"),
        (messages(("assistant", "a"), ("user", "q")), "the last message is from user, with no answer to learn from"),
        (messages(("system", "s"), ("user", " \n"), ("assistant", "a")), "message 2 (user) is empty"),
        (messages(("user", "q"), ("assistant", "")), "message 2 (assistant) is empty"),
        (
            messages(("user", "q"), ("assistant", "a"), ("user", "r")),
            "the last message is from user, with no answer to learn from",
        ),
        ({"conversations": [{"from": "critic", "value": "x"}]}, "conversations[1] is from the unknown speaker 'critic'"),
        ({"conversations": [7]}, "conversations[1] is a number, not an object"),
        ({"conversations": [{"value": "x"}]}, "conversations[1].from is missing"),
        ({"conversations": [{"from": "human", "value": 3}]}, "conversations[1].value is a number, not text"),
        ({"conversations": "x"}, "conversations must be a list of messages, not text"),
        ({"instruction": "q", "input": 3, "output": "a"}, "input is a number, not text"),
        ({"instruction": "q", "output": None}, "output is null, not text"),
        ({"messages": [USER, ANSWER], "system": 7}, "system is a number, not text"),
        ({"instruction": "q", "output": "a", "history": "x"}, "history must be a list of questions and answers, not text"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history[1] must be a question and its answer, not text"),
        (
            {"instruction": "q", "output": "a", "history": [["x", "y"], ["x"]]},
            "history[2] must be a question and its answer, not a list of 1",
        ),
        (
            {"instruction": "q", "output": "a", "history": [[]]},
            "history[1] must be a question and its answer, not an empty list",
        ),
        ({"instruction": "q", "output": "a", "history": [["x", None]]}, "history[1][2] is null, not text"),
        (
            {"instruction": "q", "output": "a", "history": [["\ud83d", "y"]]},
            "history[1][1] has a lone surrogate (\\ud83d)",
        ),
        ({"instruction": "q", "output": "a", "history": [["x", " "]]}, "message 2 (assistant) is empty"),
        ({"prompt": ["q"], "completion": "a"}, "prompt[1] is text, not an object"),
        ({"prompt": [], "completion": "a"}, "prompt must be a list of messages, not an empty list"),
        ({"prompt": {}, "completion": "a"}, "prompt is an object, not text"),
        ({"prompt": [USER], "completion": [{"role": "assistant"}]}, "completion[1].content is missing"),
        ({"prompt": [USER], "completion": [USER]}, "there is no assistant turn to learn from"),
        ({"prompt": [USER], "completion": [{**ANSWER, "weight": 0}]}, "every answer is excluded from training"),
        ({"question": "q", "answer": None}, "answer is null, not text"),
        ({"question": ["q"], "answer": "a"}, "question is a list, not text"),
        ({"question": "q", "answer": []}, "answer is an empty list, with no answer to learn from"),
        ({"question": "q", "answers": {"text": []}}, "answers.text is an empty list, with no answer to learn from"),
        ({"question": "q", "answers": {"text": [{"text": None}]}}, "answers.text[1].text is null, not text"),
        ({"instruction": "q", "output": ["a"]}, "output is a list, not text"),
        ({"instruction": "q", "output": [ANSWER]}, "output is a list, not text"),
        ({"instruction": "q", "output": float("nan")}, "output is a number, not text"),
        (
            {"prompt": "q", "completion": {"a": float("inf")}},
            "completion cannot be written as JSON: it contains a non-finite number",
        ),
        ({"prompt": "q", "completion": {"role": "assistant", "content": 7}}, "completion.content is a number, not text"),
        ({"question": "q", "answer": [""]}, "message 2 (assistant) is empty"),
        ({"question": "q", "answer": ["\ud83d"]}, "answer[1] has a lone surrogate (\\ud83d)"),
        ({"question": "q", "answer": "a", "context": {"title": "t"}}, "context is an object, not text"),
        ({"content": " ", "id": 7}, "content is empty"),
        ({"content": "t", "role": "critic"}, "no known format has the keys 'content', 'role'"),
        ({"content": "t", "question": "q"}, "no known format has the keys 'content', 'question'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, preference("completion")),
        ({"prompt": "q", "chosen": [ANSWER], "rejected": [ANSWER], "text": "t"}, preference("completion")),
        ({"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, preference("messages")),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, preference("messages")),
        ({"question": "q", "chosen": "[a", "rejected": "b"}, preference("answer")),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, preference("output")),
        ({"query": "q", "chosen": "a", "rejected": "b"}, preference("response")),
        ({"input": "q", "chosen": "a", "rejected": "b"}, preference("output")),
        ({"chosen": "a", "rejected": "b"}, preference("text")),
        ({"text": "\u2003\n"}, "text is empty"),
        ({"text": "\ud83d"}, "text has a lone surrogate (\\ud83d)"),
        ({"ask": "q", "answer": "a"}, "no known format has the keys 'ask', 'answer'"),
    ],
)
def test_why_a_row_cannot_be_used(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse(row)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("messages", "messages is missing"),
        ("sharegpt", "conversations is missing"),
        ("alpaca", "instruction is missing"),
        ("prompt-completion", "prompt is missing"),
        ("question-answer", "question is missing"),
        ("text", "text is missing"),
        ("tokens", "input_ids is missing"),
    ],
)
def test_a_row_of_another_form_than_was_said(form: str, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        parse({"a": "b"}, form)
    with pytest.raises(RowError, match=r"^a row must be an object, not a list$"):
        parse(["a"], form)


def test_an_answer_that_is_marked_as_not_wanted_is_not_learned() -> None:
    row = {"prompt": "a", "completion": "b", "label": False}
    with pytest.raises(RowError, match=r"^label is false: the answer is unwanted$"):
        parse(row)
    assert parse({**row, "label": True})[0] == "prompt-completion"


def test_a_few_keys_of_many_are_named() -> None:
    with pytest.raises(RowError) as caught:
        parse({f"column {number}": "" for number in range(120)})
    shown = ", ".join(f"'column {number}'" for number in range(8))
    assert str(caught.value) == f"no known format has the keys {shown} and 112 more"


def test_a_long_reason_is_shortened_in_the_middle() -> None:
    reason = str(RowError("the template says\n" + 500 * "x" + "\nat the end"))
    assert len(reason) == 300
    assert reason.startswith("the template says xxx")
    assert reason.endswith("xxx at the end")
