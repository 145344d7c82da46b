"""Properties of masks that hold for any conversation with thinking and tools, and any template of today's models."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

if not find_spec("trl"):
    pytest.skip("needs trl's chat templates", allow_module_level=True)

from public_templates import TEMPLATES, PublicTemplate
from talks import TOOLS, Message, answer, result, rows_of, user

from llmft_cli.data.forms.examples import RowError

WORDS = st.text(st.sampled_from("ab é\n\"{}<>/|[]'\\"), max_size=12) | st.sampled_from(["<think>", "</think>", "[INST]", " "])


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], bool]:
    """Messages in which each text ends with a word of its own, and whether there are tools."""
    messages: list[Message] = []
    with_tools = draw(st.booleans())

    def text(kind: str) -> str:
        return f"{draw(WORDS)} {kind}{len(messages)}."

    if draw(st.booleans()):
        messages.append({"role": "system", "content": text("system")})
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(text("user")))
        if with_tools and draw(st.booleans()):
            content, count = draw(st.sampled_from(["", text("content")])), draw(st.integers(1, 2))
            place = len(messages)
            messages.append(answer(content, places=tuple(f"place{place}{number}" for number in range(count))))
            for number in range(count):
                messages.append(result(f"place{place}{number}", text("result")))
        messages.append(answer(text("answer"), draw(st.sampled_from(["", text("thought")]))))
    return messages, with_tools


def without_spaces(text: str) -> str:
    """And without the tags of thinking, which are no text."""
    return re.sub(r"\s|</?think>", "", text)


def own_words(message: Message) -> set[str]:
    """The words that only this message has."""
    calls = {call["function"]["arguments"]["place"] for call in message.get("tool_calls", ())}
    return calls | words(message["content"]) | words(message.get("reasoning_content", ""))


def words(text: str) -> set[str]:
    return set(re.findall(r"(?:system|user|content|result|answer|thought|place)\d+", text))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(template=st.sampled_from(TEMPLATES), drawn=conversations())
def test_each_answer_is_learned_whole_and_alone(template: PublicTemplate, drawn: Any, tokenizers: dict[str, Any]) -> None:
    """Whatever is kept: every answer is in one span, no span has words of other messages, and nothing is lost."""
    messages, with_tools = drawn
    try:
        _, rendered = rows_of(tokenizers[template.name], messages, TOOLS if with_tools else None)
    except RowError:
        reject()  # fails the test if nearly all are
    spans = [row.text[start:stop] for row in rendered.rows for start, stop in row.learned_spans]
    answers = [message for message in messages if message["role"] == "assistant"]
    assert len(spans) == len(answers)
    everything = {word for message in messages for word in own_words(message)}
    for message in answers:
        [span] = [span for span in spans if own_words(message) <= words(span)]
        assert words(span) & everything == own_words(message)
        assert without_spaces(message["content"]) in without_spaces(span)
        assert span.endswith(tuple(template.ends))
    texts = "\n".join(row.text for row in rendered.rows)
    assert words(texts) >= everything
