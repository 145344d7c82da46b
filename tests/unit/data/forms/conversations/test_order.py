"""Orders of roles that are left to the chat template."""

from __future__ import annotations

from typing import Any

import pytest
from turns import ANSWER, CALL, CALLS, RESULT, SYSTEM, USER, talk

from llmft_cli.data.forms.formats import Conversation, parse

SECOND_SYSTEM = {"role": "system", "content": "t"}


@pytest.mark.parametrize(
    "messages",
    [
        [ANSWER],
        [ANSWER, USER, ANSWER],
        [SYSTEM, ANSWER],
        [SYSTEM, ANSWER, USER, ANSWER],
        [USER, USER, ANSWER],
        [USER, ANSWER, ANSWER],
        [SYSTEM, SECOND_SYSTEM, USER, ANSWER],
        [USER, SYSTEM, ANSWER],
        [SYSTEM, USER, ANSWER, SECOND_SYSTEM, USER, ANSWER],
        [USER, ANSWER, {"role": "system", "content": ""}, USER, ANSWER],
        [USER, CALLS, USER, ANSWER],
        [USER, CALLS, ANSWER],
        [USER, CALLS, SYSTEM, ANSWER],
        [USER, CALLS, USER, RESULT, ANSWER],
        [USER, CALLS, RESULT, USER, ANSWER],
        [USER, {**CALLS, "tool_calls": [CALL, CALL]}, RESULT, USER, RESULT, ANSWER],
        [USER, ANSWER, RESULT, RESULT, ANSWER],
    ],
)
def test_any_order_with_an_answer_at_its_end_is_kept_for_the_template(messages: list[Any]) -> None:
    assert parse(talk(*messages)) == ("messages", Conversation(messages))
