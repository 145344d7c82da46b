"""A conversation that comes to the end of the model's positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from llmft_cli.base.errors import DataError
from llmft_cli.run_dir.run import RunDir
from llmft_cli.serving import chat
from llmft_cli.serving.chat import Session
from llmft_cli.serving.generation import Reply
from llmft_cli.serving.room import new_tokens_for
from llmft_cli.settings.config import resolve

from .said import Screen

LONGEST = 100


class Letters:
    """An encoder with a token for each letter."""

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [0 for message in messages for _ in message["content"]]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Answers are as long as they may be."""
    tuned: Any = SimpleNamespace(encoder=Letters(), longest_conversation=LONGEST)

    def answer(tuned: Any, prompt: Sequence[int], arm: str, config: Any, on_text: Any) -> Reply:
        tokens = new_tokens_for(len(prompt), tuned.longest_conversation, config.max_new_tokens)
        return Reply("a" * tokens, tokens, 1.0)

    monkeypatch.setattr(chat, "stream_answer", answer)
    return Session(RunDir(tmp_path), tuned, resolve({"max_new_tokens": 30}))


def test_it_says_when_it_is_full_and_goes_on_after_reset(session: Session) -> None:
    screen = Screen()
    session.ask("q" * 20, screen)  # 50 tokens with the answer
    assert screen.said == []
    session.ask("q" * 30, screen)  # 80 tokens, and an answer of only 20
    assert screen.said == ["the conversation is full: /reset starts a new one"]
    with pytest.raises(DataError) as raised:
        session.ask("q", screen)
    assert raised.value.message == (
        "the conversation is full: 101 tokens of the 100 that it may have leave no room for an answer"
    )
    assert raised.value.hint == "/reset starts a new one"
    session.reset()
    assert session.ask("q", screen).tokens == 30


def test_a_question_that_is_too_long_by_itself(session: Session) -> None:
    with pytest.raises(
        DataError, match=r"^the question is too long: 100 tokens of the 100 that it may have leave no room"
    ) as raised:
        session.ask("q" * 100, Screen())
    assert raised.value.hint == "shorten it, or the system message"
    assert session.messages == []
